"""docs/performance.md shows the figures that are kept, and names what the plan names."""

from __future__ import annotations

import json
import re

from ftcli.training.plan.plan import Optimizations, PlannedTraining
from scripts.bench import FOUND, PAGE, TABLES, page

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_is_current() -> None:
    others = {"time"}  # of scripts/speed_error.py
    assert set(re.findall(r"<!-- begin: (\w+) -->", TEXT)) - others == set(TABLES)
    assert page(TEXT) == TEXT, "make docs"


def test_nothing_shows_on_which_machine() -> None:
    for file in (PAGE, *FOUND.glob("*.json")):
        assert not re.search(r"/(root|home|work|tmp)/", file.read_text(encoding="utf-8")), file


def test_optimizations_have_the_names_of_the_plan() -> None:
    named = {name.replace(" ", "_") for name in re.findall(r"^\| `([a-z ]+)` \|", TEXT, re.M)}
    assert named == {"packing", *Optimizations.model_fields}
    assert "packing" in PlannedTraining.model_fields


def test_losses_are_those_of_the_plain_path() -> None:
    """Packed or not, a step's loss is the same, but for what 16 bits round at another place."""
    for each in json.loads((FOUND / "optimizations.json").read_text(encoding="utf-8"))["measured"]:
        within = 1e-3 if each["precision"] == "no" else 1e-2
        assert max(each["largest_loss_difference"].values()) <= within
