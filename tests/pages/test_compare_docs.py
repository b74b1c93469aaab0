"""docs/compare.md shows the comparisons that are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import build_compare_docs as docs  # noqa: E402

from ftcli.evaluation.compare.cells import METHODS  # noqa: E402


def test_the_page_is_current() -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "make docs"


@pytest.mark.parametrize("name", docs.NAMES)
def test_all_six_were_trained_alike_and_no_path_of_a_machine_is_kept(name: str) -> None:
    found = docs.kept(name)
    assert tuple(cell.method for cell in found.finished) == METHODS
    assert {cell.steps for cell in found.finished} == {60}
    base = found.base.scores["loss"].value
    assert all(cell.scores["loss"].value < base for cell in found.finished)
    assert "/root" not in docs.data_file(name).read_text(encoding="utf-8")
    assert (docs.DOCS / docs.picture(name)).stat().st_size > 10_000


def test_keeping_what_is_kept_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, before = docs.kept("shop"), docs.data_file("shop").read_text(encoding="utf-8")
    folder = tmp_path / found.folder
    here = {"folder": str(folder), "recipe": str(tmp_path / found.recipe)}
    folder.mkdir(parents=True)
    found.model_copy(update=here).write(folder / "compare.json")
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "figures").mkdir()
    docs.keep("shop", folder)
    assert docs.data_file("shop").read_text(encoding="utf-8") == before
    assert (tmp_path / docs.picture("shop")).is_file()
