"""Lengths, and the bins that show them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.data.example import Origin
from ftcli.metrics.dataset.lengths import MOST_BINS, Lengths, bin_edges
from ftcli.metrics.dataset.row import DataRow


def profile(pairs: list[tuple[int, int]]) -> Lengths:
    lengths = Lengths()
    for prompt, answer in pairs:
        lengths.add(DataRow(Origin("a", 1), (), prompt, answer))
    return lengths


def test_half_of_the_rows_are_no_longer_than_the_median() -> None:
    found = profile([(n, 2 * n) for n in range(1, 11)]).found()
    assert found is not None
    assert (found.prompt.median, found.prompt.p90, found.prompt.max) == (5, 9, 10)
    assert (found.answer.median, found.answer.p90, found.answer.max) == (10, 18, 20)
    assert (found.prompt.total, found.answer.total) == (55, 110)
    assert found.histogram.edges == tuple(range(0, 23, 2))
    assert found.histogram.prompt == (1, 2, 2, 2, 2, 1, 0, 0, 0, 0, 0)
    assert Lengths().found() is None


@pytest.mark.parametrize(
    ("longest", "edges"), [(0, (0, 1)), (11, tuple(range(13))), (12, tuple(range(0, 15, 2)))]
)
def test_steps_are_round_numbers(longest: int, edges: tuple[int, ...]) -> None:
    assert bin_edges(longest) == edges


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 5000)), min_size=1))
def test_every_row_is_in_one_bin(pairs: list[tuple[int, int]]) -> None:
    found = profile(pairs).found()
    assert found is not None
    histogram = found.histogram
    assert len(histogram.prompt) == len(histogram.answer) == len(histogram.edges) - 1 <= MOST_BINS
    assert sum(histogram.prompt) == sum(histogram.answer) == len(pairs)
    assert histogram.edges[-1] > max(max(pair) for pair in pairs)
