"""Scorer and labels side by side; no rule was written with the two files of model answers."""

from __future__ import annotations

import json

import pytest

from tests.metrics.faithfulness.scored import HERE, Scores, Tally, figures, rows_of, score

SECOND = [HERE / f"second_{name}_answers.jsonl" for name in ("retail", "medical", "shop")]


def needs_rows(*names: str) -> pytest.MarkDecorator:
    absent = any(rows_of(HERE / name) is None for name in names)
    return pytest.mark.skipif(absent, reason="the public rows that the labels name are not here")


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


@pytest.mark.parametrize(
    "name",
    [pytest.param("retail_answers", marks=needs_rows("retail_answers.jsonl")), "shop_answers"],
)
def test_answers_of_models_that_the_second_round_was_written_with(name: str) -> None:
    agreed(score(HERE / f"{name}.jsonl"), 0.9, 0.97)


@needs_rows("second_retail_answers.jsonl", "second_medical_answers.jsonl")
def test_answers_of_models_that_no_rule_was_written_with() -> None:
    together = {"invented": [0, 0, 0], "missing": [0, 0, 0]}
    for file in SECOND:
        found = score(file)
        for name, counts in together.items():
            tally: Tally = getattr(found, name)
            for place, part in enumerate((tally.right, tally.wrong, tally.overlooked)):
                counts[place] += part.total()
    for right, wrong, overlooked in together.values():
        assert right / (right + wrong) >= 0.9
        assert right / (right + overlooked) >= 0.9


@pytest.mark.parametrize("name", ["written", "more"])
def test_labels_are_pieces_of_their_answers_and_facts(name: str) -> None:
    for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        assert all(label["text"] in case["answer"] for label in case["invented"]), case["id"]
        assert all(label["text"] in case["answer"] for label in case["banned"]), case["id"]
        assert all(value in case["facts"] for value in case["missing"] or ()), case["id"]
