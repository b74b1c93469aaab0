"""The scorer against answers labelled by hand, and against changed words of public rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.labelled_answers import (
    LABELLED,
    RETAIL,
    SHARED,
    SHOP,
    agreement,
    changed_words,
    pairs_in,
)
from tests.tiers import tiers


def needs(*paths: Path | None) -> pytest.MarkDecorator:
    absent = any(path is not None and not path.is_file() for path in paths)
    return pytest.mark.skipif(absent, reason="the public rows that the labels name are not here")


# File → least recall of numbers, and of facts that are not mentioned; most wrong per right fact.
LEAST = {
    "written": (0.82, 0.97),
    "more": (0.93, 0.97),
    "shop_answers": (0.92, 0.97),
    "second_shop_answers": (1.0, 0.97),
    "retail_answers": (0.97, 0.97),
    "second_retail_answers": (1.0, 0.97),
    "second_medical_answers": (1.0, 0.0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(rows)) for name, rows in LABELLED.items()]
)
def test_numbers_and_facts_agree_with_the_labels(name: str) -> None:
    found = agreement(name)
    numbers, facts = LEAST[name]
    hits, labelled = found.recall("number")
    assert hits >= numbers * labelled
    missing = found.missing
    assert missing["right"] >= facts * (missing["right"] + missing["overlooked"])
    if LABELLED[name] is not None:
        # Without rows to learn from, every word of a value is needed.
        assert missing["wrong"] <= 0.06 * max(missing["right"], 1)


@needs(RETAIL)
def test_colours_and_materials_are_learnt_from_the_rows() -> None:
    """No list names them; 104 labelled ones of two data sets."""
    for name in ("retail_answers", "second_retail_answers"):
        hits, labelled = agreement(name).recall("colour", "material")
        assert hits >= 0.8 * labelled


def test_changed_words_of_the_shop() -> None:
    marked, untouched = changed_words(pairs_in(SHOP), pairs_in(SHOP.with_name("test.jsonl")))
    assert marked["number"][True] / marked["number"].total() >= 0.95
    assert marked["name"][True] / marked["name"].total() >= 0.8
    assert untouched <= 12  # of 60


@needs(SHARED / "sql_wikisql_large" / "train.jsonl")
@pytest.mark.parametrize(
    ("folder", "names"),
    tiers([("sql_wikisql_large", 0.8), (RETAIL.parent.name, 0.9)], (RETAIL.parent.name, 0.9)),
)
def test_changed_words_of_public_rows(folder: str, names: float) -> None:
    pairs = pairs_in(SHARED / folder / "train.jsonl")
    marked, untouched = changed_words(pairs[:-300], pairs[-300:])
    assert marked["number"][True] >= 0.95 * marked["number"].total()
    assert marked["name"][True] >= names * marked["name"].total()
    assert untouched <= 0.25 * 300
