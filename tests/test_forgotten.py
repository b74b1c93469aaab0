"""What an evaluation says of general ability: its verdict and its words."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from ftcli.data.example import Example, Origin
from ftcli.metrics.answer import Answer
from ftcli.metrics.general_instructions import Instruction
from ftcli.metrics.general_text import GeneralText
from ftcli.metrics.likelihood import Scored
from ftcli.recipe import Generation
from ftcli.stages.evaluate.forgetting import forgotten
from ftcli.stages.evaluate.rows import Row
from ftcli.stages.evaluate.sets import Sets
from ftcli.stages.evaluate.work import Done, RowSet
from ftcli.stages.report.forgotten import forgotten_in

TOKENS = 100


def rows(count: int) -> RowSet:
    """One a passage."""
    each = tuple(Row([1], [1], 0, (), "general.txt", line) for line in range(count))
    return RowSet("general", each, (), Generation(), 1)


def done(losses: list[float], stops: list[bool] | None = None) -> Done:
    answers = tuple(Answer("yes" if stop else "no", 1, stop) for stop in stops or [])
    return Done(Scored(tuple(losses), (TOKENS,) * len(losses)), answers, 1.0, (1,) * len(answers))


def of_texts(changes: list[float]) -> dict[str, Any]:
    """A text's loss rises by so much, in nats a token."""
    before = [TOKENS * (3 + number / 50) for number in range(len(changes))]
    after = [old + TOKENS * change for old, change in zip(before, changes, strict=True)]
    general = GeneralText("built-in", (), "")
    sets = Sets(rows(0), None, rows(len(changes)), None, general, ())
    found: dict[str, Any] = forgotten(sets, {"text": done(before)}, {"text": done(after)})["text"]
    return found


@pytest.mark.parametrize(
    ("change", "texts", "verdict", "words"),
    [
        (0.23, 12, "worse", "+23%: forgets"),
        (0.06, 12, "worse", "+6%: forgets"),
        (0.02, 12, "worse", "+2%: slightly higher"),
        (0.004, 12, "worse", "+0.4%: slightly higher"),
        (0.0004, 12, "worse", "less than +0.1%: slightly higher"),
        (-0.004, 12, "better", "-0.4%: better than before"),
        (-0.23, 12, "better", "-23%: better than before"),
        (0.0, 12, "no difference shown", "±0%: nothing shown to be forgotten"),
        (0.23, 9, "too few", "+23%: 9 texts are too few to say"),
        (0.004, 9, "too few", "±0%: 9 texts are too few to say"),
    ],
)
def test_the_verdict_on_a_text_and_its_words(
    change: float, texts: int, verdict: str, words: str
) -> None:
    spread = [0.00001 * (number % 3 - 1) for number in range(texts)]
    found = of_texts([math.log1p(change) + (each if change else 20 * each) for each in spread])
    assert (found["verdict"], found["words"], found["texts"]) == (verdict, words, texts)
    assert [each.is_shown for each in forgotten_in({"text": found})] == [verdict == "worse"]


def test_a_lesser_share_within_the_limit_is_slightly_lower() -> None:
    """As the report, which takes such a change for no reason to look."""
    asked = (Instruction(Example((), Origin("", 0)), re.compile("yes")),) * 400
    sets = Sets(rows(0), None, None, rows(400), None, asked)
    losses = [3.0] * 400
    for fewer, words, matters in ((16, "slightly lower", False), (40, "worse", True)):
        after = {"instructions": done(losses, [number >= fewer for number in range(400)])}
        found = forgotten(sets, {"instructions": done(losses, [True] * 400)}, after)
        assert (found["stops"]["verdict"], found["stops"]["words"]) == ("worse", words)
        (stops,) = (each for each in forgotten_in(found) if each.key == "stops")
        assert (stops.words, stops.matters) == (words, matters)


@pytest.mark.parametrize(
    ("count", "after", "verdict"),
    [(20, 0, "worse"), (20, 20, "no difference shown"), (9, 0, "too few")],
)
def test_the_verdict_on_what_a_model_does(count: int, after: int, verdict: str) -> None:
    asked = (Instruction(Example((), Origin("", 0)), re.compile("yes")),) * count
    sets = Sets(rows(0), None, None, rows(count), None, asked)
    losses = [3.0] * count
    before = {"instructions": done(losses, [True] * count)}
    stops = [number < after for number in range(count)]
    found = forgotten(sets, before, {"instructions": done(losses, stops)})
    for name in ("follows", "stops"):
        assert (found[name]["verdict"], found[name]["rows"]) == (verdict, count)
    shown = {each.key: each.is_shown for each in forgotten_in(found)}
    assert shown["stops"] is shown["follows"] is (verdict == "worse")
