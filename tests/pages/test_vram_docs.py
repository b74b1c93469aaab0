"""docs/vram.md is current, and its ten worst rows have causes."""

from __future__ import annotations

import json

import pytest

from scripts.measured_runs import TABLE, read_rows
from scripts.vram_error import CAUSES, PAGE, Scored, page, score_table, worst


@pytest.fixture(scope="module")
def scored() -> list[Scored]:
    return score_table(TABLE)[0]


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "make docs"


def test_each_of_the_ten_worst_has_a_cause(scored: list[Scored]) -> None:
    known = json.loads(CAUSES.read_text(encoding="utf-8"))
    assert {each.run.row["row_id"] for each in worst(scored)} <= set(known["rows"])
    assert set(known["rows"].values()) == set(known["causes"])
    assert set(known["rows"]) <= {row["row_id"] for row in read_rows(TABLE)}


def test_what_no_published_run_covers() -> None:
    rows = read_rows(TABLE)
    assert not [row for row in rows if row["method"] == "full" and row["weights_dtype"] == "fp32"]
    assert not [row for row in rows if "H100" in row["gpu"] or "dora" in row["notes"].lower()]
    assert sum(row["opt_impl"] == "fused" for row in rows) == 1
    assert sum("A100" in row["gpu"] for row in rows) > len(rows) / 2
