"""Which prompts are answered in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ftcli.engine.together import Room, together
from tests.engine.test_decoding import own


def batches_of(prompts: Sequence[Sequence[int]], room: Room, new: int = 10) -> list[list[int]]:
    found = together(prompts, new, room)
    assert sorted(place for batch in found for place in batch) == list(range(len(prompts)))
    for batch in found:
        lengths = [len(prompts[place]) for place in batch]
        assert all(a >= b for a, b in pairwise(lengths))
    return found


def test_batches_have_as_many_rows_as_there_is_room_for() -> None:
    prompts = [own(length, length) for length in range(5, 25)]
    assert [len(batch) for batch in batches_of(prompts, Room(64, 10_000))] == [20]
    assert [len(batch) for batch in batches_of(prompts, Room(15, 10_000))] == [10, 10]
    narrow = batches_of(prompts, Room(64, 170))
    assert [len(batch) for batch in narrow] == [5, 5, 5, 5]
    for batch in narrow:
        assert len(batch) * (len(prompts[batch[0]]) + 10) <= 170
    assert [len(batch) for batch in batches_of(prompts, Room(64, 1))] == [1] * 20


def test_an_even_cut_makes_no_batch_more() -> None:
    """Long prompts fill a batch with few rows: one of as many rows each would leave a rest."""
    prompts = [own(90, seed) for seed in range(5)] + [own(20, seed + 5) for seed in range(15)]
    assert [len(batch) for batch in batches_of(prompts, Room(64, 500))] == [5, 15]


def test_what_they_share_takes_room_once() -> None:
    prompts = [list(range(100, 200)) + own(5, seed) for seed in range(10)]
    assert len(batches_of(prompts, Room(64, 100 + 10 * 15))) == 1
    assert len(batches_of(prompts, Room(64, 100 + 10 * 15 - 1))) == 2


def test_prompts_of_another_beginning_are_answered_by_themselves() -> None:
    """A batch more is worth the 1,000 tokens that each row would have to read again."""
    one, other = list(range(1000, 2000)), list(range(2000, 3000))
    prompts = [[*(one if seed % 3 else other), *own(4, seed)] for seed in range(12)]
    found = batches_of(prompts, Room(64, 100_000))
    assert sorted(map(sorted, found)) == [[0, 3, 6, 9], [1, 2, 4, 5, 7, 8, 10, 11]]
    short = [prompt[900:] for prompt in prompts]
    assert len(batches_of(short[:6], Room(64, 100_000))) == 1


def test_prompts_that_begin_each_with_the_one_before() -> None:
    prompts = [own(length, 1) for length in range(1, 900, 3)]
    assert len(batches_of(prompts, Room(1000, 10**6))) < 10
