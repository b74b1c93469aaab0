"""docs/evaluation.md shows the figures that are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import grounding


def test_the_page_is_of_the_kept_figures() -> None:
    kept = json.loads(grounding.KEPT.read_text(encoding="utf-8"))
    assert grounding.write_page(kept) == grounding.PAGE.read_text(encoding="utf-8")


def test_numbers_and_names_are_found_in_the_kept_figures() -> None:
    kept = json.loads(grounding.KEPT.read_text(encoding="utf-8"))
    for kind, least in {"number": 0.95, "name": 0.5}.items():
        hits, of = (sum(row[kind][part] for row in kept["changed"]) for part in (0, 1))
        assert hits >= least * of
