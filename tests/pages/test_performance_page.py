"""docs/performance.md tells the figures that are kept, and only of programs that are there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import performance_page as page  # noqa: E402

from ftcli.training.plan.plan import Plan  # noqa: E402

TEXT = page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_current() -> None:
    assert page.page(TEXT) == TEXT, "python scripts/performance_page.py"


KEPT = [name for name in page.TABLES if (page.FOUND / f"{name}.json").is_file()]


def test_every_marked_part_has_its_figures() -> None:
    assert set(re.findall(r"<!-- begin: (\w+) -->", TEXT)) == set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_another_figure_makes_another_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in KEPT:
        text = (page.FOUND / f"{each}.json").read_text(encoding="utf-8")
        other = re.sub(r"\d(?=\.\d)", lambda digit: str((int(digit[0]) + 3) % 10), text)
        (tmp_path / f"{each}.json").write_text(other if each == name else text)
    monkeypatch.setattr(page, "FOUND", tmp_path)
    assert page.page(TEXT) != TEXT


def test_nothing_tells_on_which_machine() -> None:
    for file in (page.PAGE, *page.FOUND.glob("*.json")):
        assert not re.search(r"/(root|home|work|tmp)/", file.read_text(encoding="utf-8")), file


def test_levers_have_the_names_of_the_plan() -> None:
    named = set(re.findall(r"^\| `([a-z ]+)` \|", TEXT, re.M))
    levers = {"packing", "shared prefix", "fused lora", "fused norms", "liger", "dequantised"}
    assert named == levers
    assert {name.replace(" ", "_") for name in named} <= set(Plan.__dataclass_fields__)


def test_losses_are_those_of_the_plain_path() -> None:
    """As the figures have it: packed or not, a step's loss is the same, but for what 16 bits round
    at another place."""
    for each in json.loads((page.FOUND / "levers.json").read_text())["measured"]:
        within = 1e-3 if each["precision"] == "no" else 1e-2
        assert max(each["largest_loss_difference"].values()) <= within
