"""The same prompt with different answers."""

from __future__ import annotations

import random
from collections import defaultdict

from ftcli.metrics.dataset.contradictions import Contradictions, SamePrompts
from ftcli.metrics.dataset.row import DataRow
from tests.metrics.dataset.rows import row


def found(rows: list[DataRow]) -> Contradictions:
    prompts = SamePrompts()
    for each in rows:
        prompts.add(each)
    return prompts.found()


def test_case_and_white_space_make_no_difference() -> None:
    rows = [
        row("Where is  my order?", "shipping", 1),
        row("where is my order? ", "Billing", 2),
        row("Pay", "billing", 3),
        row("pay", "BILLING\n", 4),
        row("Other", "shipping", 5),
    ]
    seen = found(rows)
    assert (seen.prompts, seen.rows) == (1, 2)
    assert [[str(origin) for origin in group] for group in seen.shown] == [
        ["rows.jsonl:1", "rows.jsonl:2"]
    ]


def test_another_system_prompt_asks_another_thing() -> None:
    rows = [row("a", "x", 1, system="In French."), row("a", "y", 2, system="In German.")]
    assert found(rows) == Contradictions(0, 0, ())
    # The border between turns counts too.
    rows = [row("b c", "x", 1, system="a"), row("c", "y", 2, system="a b")]
    assert found(rows).prompts == 0


def test_counts_are_those_of_a_dictionary() -> None:
    draw = random.Random(0)
    rows = [row(f"q{draw.randrange(80)}", f"a{draw.randrange(3)}", n) for n in range(400)]
    groups = defaultdict(list)
    for each in rows:
        groups[each.prompt].append(each)
    several = [group for group in groups.values() if len({each.answer for each in group}) > 1]
    seen = found(rows)
    assert seen.prompts == len(several)
    assert seen.rows == sum(map(len, several))
    first = [next(each.origin for each in group) for group in several]
    assert [group[0] for group in seen.shown] == sorted(first, key=lambda o: o.line)[:3]
    # Rows that are shown have answers of their own.
    for group in seen.shown:
        answers = [rows[origin.line].answer for origin in group]
        assert len(set(answers)) == len(answers) > 1


def test_nothing_is_found_in_nothing() -> None:
    assert found([]) == Contradictions(0, 0, ())
    assert found([row("a", "b")]) == Contradictions(0, 0, ())
