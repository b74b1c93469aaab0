"""Which rows of a source are replayed, and how little is kept to know it."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftcli.config.recipe import Replay
from ftcli.data import replay as module
from ftcli.data.example import Example, Message, Origin
from ftcli.data.replay import Drawing, look_through
from ftcli.data.row import Reject

SEED = 7


def conversation(number: int) -> Example:
    turns = (Message("user", f"Ask {number}."), Message("assistant", f"Say {number}."))
    return Example(turns, Origin("general.jsonl", number))


def looked_through(
    monkeypatch: pytest.MonkeyPatch, rows: Iterator[Example | Reject], held_out: set[bytes]
) -> Drawing:
    monkeypatch.setattr(module, "replayed_examples", lambda replay, base: rows)
    replay = Replay(source="general.jsonl")
    return look_through(replay, Path(), SEED, held_out, lambda: None)


def test_the_order_is_that_of_the_places_and_of_equal_rows_the_first_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(3)
    numbers = [chance.randrange(400) for _ in range(1000)]
    held = {conversation(number).question_digest() for number in range(50)}
    rows: list[Example | Reject] = [conversation(number) for number in numbers]
    for place in (0, 10, 500):
        rows.insert(place, Reject(Origin("general.jsonl", 1), "empty"))
    found = looked_through(monkeypatch, iter(rows), held)
    first: dict[bytes, int] = {}
    for index, number in enumerate(numbers):
        if number >= 50:
            first.setdefault(conversation(number).digest(), index)
    wanted = sorted(first, key=lambda digest: module._place(SEED, digest))
    assert list(found.order) == [first[digest] for digest in wanted]
    assert found.held_out == sum(number < 50 for number in numbers)
    assert found.duplicates == 1000 - found.held_out - len(first)
    assert (found.rows_read, found.rejected) == (1003, 3)


@pytest.mark.parametrize("rows", [0, 1])
def test_of_no_row_or_one(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked_through(monkeypatch, iter([conversation(0)][:rows]), set())
    assert list(found.order) == list(range(rows)) and found.duplicates == 0


def test_digests_that_end_in_zeros_are_none_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As texts of C they would be: numpy leaves zeros at the end out."""
    ends = [b"a" * 15 + b"\0", b"a" * 14 + b"\0\0", b"a" * 16]
    digests = iter([*ends, ends[1]])
    monkeypatch.setattr(Example, "digest", lambda _: next(digests))
    found = looked_through(monkeypatch, (conversation(number) for number in range(4)), set())
    wanted = sorted(range(3), key=lambda index: module._place(SEED, ends[index]))
    assert list(found.order) == wanted and found.duplicates == 1


def test_a_row_of_the_source_takes_a_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest, a number, and for a moment what sorts them."""
    rows = 20_000
    looked_through(monkeypatch, iter([conversation(0)]), set())  # numpy is there
    tracemalloc.start()
    try:
        found = looked_through(monkeypatch, map(conversation, range(rows)), set())
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.order) == rows
    assert held / rows < 10 and peak / rows < 130
