from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.data.order import StepSampler, micro_batches, run_rows

rows = st.integers(1, 40)
epochs = st.integers(1, 4)
seeds = st.integers(0, 5)


@given(rows=rows, epochs=epochs, seed=seeds, shuffle=st.booleans())
def test_every_row_comes_once_an_epoch(rows: int, epochs: int, seed: int, shuffle: bool) -> None:
    order = run_rows(rows, epochs, seed, shuffle=shuffle)
    assert len(order) == rows * epochs
    for epoch in range(epochs):
        one = order[epoch * rows : (epoch + 1) * rows]
        assert sorted(one) == list(range(rows))
        if not shuffle:
            assert one == list(range(rows))


@given(rows=rows, seed=seeds)
def test_the_order_is_the_seeds(rows: int, seed: int) -> None:
    assert run_rows(rows, 3, seed, shuffle=True) == run_rows(rows, 3, seed, shuffle=True)


def test_seeds_and_epochs_are_shuffled_differently() -> None:
    order = run_rows(30, 2, 0, shuffle=True)
    assert order[:30] != order[30:]
    assert order[:30] != run_rows(30, 1, 1, shuffle=True)


def test_more_epochs_begin_as_fewer_do() -> None:
    assert run_rows(30, 3, 0, shuffle=True)[:30] == run_rows(30, 1, 0, shuffle=True)


def test_an_order_is_the_same_in_every_version() -> None:
    """A resumed run needs the order that it began with."""
    assert run_rows(8, 1, 42, shuffle=True) == [0, 4, 7, 3, 2, 6, 1, 5]


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 15), (1.5, 45), (0.01, 1), (2.25, 68)])
def test_parts_of_epochs_are_rounded_to_rows(epochs: float, steps: int) -> None:
    order = run_rows(30, epochs, 0, shuffle=True)
    assert len(order) == steps
    assert max(Counter(order).values()) <= int(epochs) + 1


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    """An order, the rows' lengths, a batch size, and a micro-batch that divides it."""
    count = draw(rows)
    order = run_rows(count, draw(epochs), draw(seeds), shuffle=True)
    lengths = draw(st.lists(st.integers(1, 99), min_size=count, max_size=count))
    micro_batch = draw(st.integers(1, 5))
    return order, lengths, micro_batch * draw(st.integers(1, 4)), micro_batch


@given(cut=cuts())
def test_a_steps_micro_batches_are_its_rows_the_longest_first(
    cut: tuple[list[int], list[int], int, int],
) -> None:
    order, lengths, batch_size, micro_batch = cut
    sampler = StepSampler(order, lengths, batch_size)
    steps = [micro_batches(window, micro_batch) for window in sampler]
    for number, step in enumerate(steps):
        found = [row for batch in step for row in batch]
        assert Counter(found) == Counter(order[number * batch_size : (number + 1) * batch_size])
        assert [lengths[row] for row in found] == sorted(
            (lengths[row] for row in found), reverse=True
        )
        assert all(0 < len(batch) <= micro_batch for batch in step)
        assert sampler.tokens(number) == sum(lengths[row] for row in found)
        assert sampler.rows_done(number + 1) == min((number + 1) * batch_size, len(order))
    assert all(sum(map(len, step)) == batch_size for step in steps[:-1])
    assert all(len(batch) == micro_batch for step in steps[:-1] for batch in step)
    assert len(steps) == len(sampler)


@given(cut=cuts())
def test_steps_hold_the_same_rows_whatever_the_micro_batch(
    cut: tuple[list[int], list[int], int, int],
) -> None:
    order, lengths, batch_size, micro_batch = cut
    for window in StepSampler(order, lengths, batch_size):
        for size in (1, micro_batch, batch_size):
            assert [row for batch in micro_batches(window, size) for row in batch] == window


def test_replayed_rows_are_spread_evenly_where_nothing_is_shuffled() -> None:
    order = run_rows(40, 1, 42, shuffle=False, replayed=8)
    assert [row for row in order if row < 32] == list(range(32))
    assert [sum(row >= 32 for row in order[i : i + 5]) for i in range(0, 40, 5)] == [1] * 8
