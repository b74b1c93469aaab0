"""Judge and labels side by side; no rule was written with the two files of model answers."""

from __future__ import annotations

import json

import pytest

from tests.metrics.faithfulness.scored import HERE, RETAIL, Scores, figures, retail_rows, score

needs_rows = pytest.mark.skipif(
    retail_rows() is None, reason=f"the public retail rows are not here; {RETAIL} names them"
)


def agreed(scores: Scores, least: float, least_missing: float | None = None) -> None:
    wanted = ((scores.invented, least), (scores.missing, least_missing or least))
    for tally, bound in wanted:
        assert tally.precision() >= bound, "\n".join(figures(scores) + tally.shown)
        assert tally.recall() >= bound, "\n".join(figures(scores) + tally.shown)


@pytest.mark.parametrize("name", ["written", "more"])
def test_cases_that_the_rules_were_written_with(name: str) -> None:
    scores = score(HERE / f"{name}.jsonl")
    agreed(scores, 0.97)
    assert scores.banned.precision() == scores.banned.recall() == 1.0


# What the first run gave, rounded down (docs/faithfulness.md).
@pytest.mark.parametrize(
    ("name", "invented"),
    [pytest.param("retail_answers", 0.79, marks=needs_rows), ("shop_answers", 0.83)],
)
def test_answers_of_models_that_no_rule_was_written_with(name: str, invented: float) -> None:
    agreed(score(HERE / f"{name}.jsonl"), invented, 0.97)


@pytest.mark.parametrize("name", ["written", "more"])
def test_labels_are_pieces_of_their_answers_and_facts(name: str) -> None:
    for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        assert all(label["text"] in case["answer"] for label in case["invented"]), case["id"]
        assert all(label["text"] in case["answer"] for label in case["banned"]), case["id"]
        assert all(value in case["facts"] for value in case["missing"] or ()), case["id"]
