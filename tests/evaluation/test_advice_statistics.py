"""Statistics of rows: near duplicates, contradictions, lengths, and a common instruction."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.data.example import Message, Origin
from ftcli.evaluation.advice.answer_form import common_beginning
from ftcli.evaluation.advice.row_statistics import (
    SIMILAR,
    Contradictions,
    DataRow,
    NearDuplicates,
    common_instruction,
    contradictions,
    lengths,
    near_duplicates,
)

WORDS = [f"word{number}" for number in range(3000)]
INSTRUCTION = "Write a product description for an online shop from these facts and nothing else: "
FACTS = "Write the listing from these facts.\n\nProduct: "


def row(
    prompt: str, answer: str, line: int = 1, *, system: str | None = None, held_out: bool = False
) -> DataRow:
    """One question and its answer."""
    turns = [Message("user", prompt), Message("assistant", answer)]
    if system is not None:
        turns.insert(0, Message("system", system))
    return DataRow(Origin("rows.jsonl", line), tuple(turns), 1, 1, held_out)


def of_words(words: list[str], line: int, *, held_out: bool = False) -> DataRow:
    """Half of the words ask, half answer."""
    half = len(words) // 2
    return row(" ".join(words[:half]), " ".join(words[half:]), line, held_out=held_out)


def changed(words: list[str], draw: random.Random) -> list[str]:
    """The same words, but for one."""
    copy = list(words)
    copy[draw.randrange(len(copy))] = draw.choice(WORDS)
    return copy


def found(rows: list[DataRow]) -> NearDuplicates:
    ordered = sorted(rows, key=lambda each: each.held_out)
    return near_duplicates(ordered, [each.prompt for each in rows])


@pytest.mark.parametrize(
    ("one", "other", "similar"),
    [
        ("One  TWO three!", "one two three", True),
        ("One two", "one two", True),
        ("one two", "one three", False),
        # Scripts without spaces: a character is a word.
        ("红色的茶壶和茶杯在厨房的桌子上面", "红色的茶壶和茶杯在厨房的桌子上头", True),
        ("红色的茶壶", "红色的茶杯", False),
        ("?", "?", False),
    ],
)
def test_words_are_compared_in_groups_of_three(one: str, other: str, similar: bool) -> None:
    others = [row(f"{n}", f"{n} {n + 1} {n + 2}", n) for n in range(10, 30)]
    assert (found([row("", one), row("", other), *others]).rows == 2) is similar


def test_an_instruction_that_all_share_makes_no_near_duplicates() -> None:
    draw = random.Random(2)
    asked = [INSTRUCTION * 3 + " ".join(draw.choices(WORDS, k=8)) for _ in range(40)]
    assert found([row(prompt, "a b c", n) for n, prompt in enumerate(asked)]).rows == 0


def test_rows_with_another_short_answer_disagree() -> None:
    draw = random.Random(3)
    prompt = " ".join(draw.choices(WORDS, k=60))
    rows = [row(prompt, "billing", 1), row(prompt, "Billing ", 2), row(prompt, "shipping", 3)]
    rows += [row(" ".join(draw.choices(WORDS, k=60)), "billing", n) for n in range(4, 20)]
    seen = found(rows)
    assert (seen.rows, seen.disagreeing) == (3, 1)
    pairs = [pair[:2] for pair in seen.pairs_shown]
    assert pairs == [("rows.jsonl:1", "rows.jsonl:2"), ("rows.jsonl:1", "rows.jsonl:3")]


def test_held_out_rows_that_nearly_equal_a_training_row_are_counted_apart() -> None:
    draw = random.Random(4)
    originals = [draw.choices(WORDS, k=60) for _ in range(30)]
    rows = [of_words(words, number) for number, words in enumerate(originals, 1)]
    for number, words in enumerate(originals[:12], 101):
        rows.append(of_words(changed(words, draw), number, held_out=True))
    for number in range(200, 208):
        rows.append(of_words(draw.choices(WORDS, k=60), number, held_out=True))
    # Held-out rows that equal each other and no training row flatter nothing.
    rows += [of_words(WORDS[:60], number, held_out=True) for number in (300, 301)]
    seen = found(rows)
    assert (seen.rows, seen.held_out.rows, seen.held_out.rows_looked_at) == (0, 12, 22)
    training, held_out, similarity = seen.held_out.pairs_shown[0]
    assert (training, held_out) == ("rows.jsonl:1", "rows.jsonl:101")
    assert SIMILAR <= similarity < 1


def test_prompts_that_differ_in_case_and_white_space_are_the_same() -> None:
    rows = [
        row("Where is  my order?", "shipping", 1),
        row("where is my order? ", "Billing", 2),
        row("Pay", "billing", 3),
        row("pay", "BILLING\n", 4),
        row("Other", "shipping", 5),
        row("WHERE is my order?", "shipping", 6),
    ]
    expected = Contradictions(1, 3, (("rows.jsonl:1", "rows.jsonl:2"),))
    assert contradictions(rows) == expected, "rows that are shown have different answers"


def test_another_system_prompt_asks_another_thing() -> None:
    none = Contradictions(0, 0, ())
    rows = [row("a", "x", 1, system="In French."), row("a", "y", 2, system="In German.")]
    assert contradictions(rows) == none
    # The border between turns counts too.
    rows = [row("b c", "x", 1, system="a"), row("c", "y", 2, system="a b")]
    assert contradictions(rows) == contradictions(rows[:1]) == contradictions([]) == none


def test_the_first_three_contradictions_are_shown() -> None:
    rows = [row(f"q{n % 5}", f"a{n // 5}", n) for n in range(20)]
    seen = contradictions(rows)
    assert (seen.prompts, seen.rows) == (5, 20)
    assert seen.shown[1] == ("rows.jsonl:1", "rows.jsonl:6", "rows.jsonl:11")
    assert len(seen.shown) == 3


def of_lengths(pairs: list[tuple[int, int]]) -> list[DataRow]:
    return [DataRow(Origin("a", 1), (), *pair) for pair in pairs]


def test_half_of_the_rows_are_no_longer_than_the_median() -> None:
    found = lengths(of_lengths([(n, 2 * n) for n in range(1, 11)]))
    assert found is not None
    assert (found.prompt.median, found.prompt.p90, found.prompt.max) == (5, 9, 10)
    assert (found.answer.median, found.answer.p90, found.answer.max) == (10, 18, 20)
    assert (found.prompt.total, found.answer.total) == (55, 110)
    assert found.histogram.edges == tuple(range(0, 23, 2))
    assert found.histogram.prompt == (1, 2, 2, 2, 2, 1, 0, 0, 0, 0, 0)
    assert lengths([]) is None


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 5000)), min_size=1))
def test_every_row_is_in_one_bin(pairs: list[tuple[int, int]]) -> None:
    found = lengths(of_lengths(pairs))
    assert found is not None
    edges, counts = found.histogram.edges, (found.histogram.prompt, found.histogram.answer)
    assert len(edges) <= 13
    assert len({after - before for before, after in pairwise(edges)}) == 1
    for place, bins in enumerate(counts):
        for before, after, rows in zip(edges, edges[1:], bins, strict=False):
            assert rows == sum(before <= pair[place] < after for pair in pairs)


@pytest.mark.parametrize(
    ("texts", "beginning"),
    [
        # Whole lines: the first field's name belongs to the row.
        ([f"{FACTS}{name}" for name in ("kettle", "lamp", "chair")], FACTS[:-9]),
        # Whole words, where there is one line alone.
        ([f"Translate to French: s{n}" for n in "abc"], "Translate to French:"),
        ([f"Translate: {n}" for n in "abc"], "Translate: "),
        (["kettle", "kernel"], ""),
        (["lamp", "chair"], ""),
        # One question, asked again and again, is no instruction.
        (["Tell a joke."] * 9, ""),
        ([], ""),
        # One in twenty may begin otherwise.
        ([*(f"{FACTS}{number}" for number in range(95)), *"abcde"], FACTS[:-9]),
        ([*(f"{FACTS}{number}" for number in range(95)), *"abcdefghij"], ""),
    ],
)
def test_the_beginning_ends_with_a_line_or_a_word(texts: list[str], beginning: str) -> None:
    assert common_beginning(texts) == beginning


def test_a_system_prompt_is_part_of_the_instruction() -> None:
    rows = [row(f"{FACTS}{n}", "x", system="Be brief.") for n in range(3)]
    assert common_instruction(rows) == f"Be brief.\n{FACTS[:-9]}"
    assert common_instruction([row(f"{n}", "x", system="abc"[n]) for n in range(3)]) == ""
