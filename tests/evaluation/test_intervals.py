from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.evaluation import intervals
from ftcli.evaluation.intervals import mean_interval, ratio_interval, share_interval


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson 1927 at 95%, by its formula."""
    z = 1.959963984540054
    share = successes / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    spread /= 1 + z**2 / count
    return middle - spread, middle + spread


def test_wilson_of_57_in_60() -> None:
    assert share_interval(57, 60) == pytest.approx((0.8630, 0.9829), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_is_inside_its_interval(numbers: tuple[int, int]) -> None:
    successes, count = numbers
    low, high = share_interval(successes, count)
    assert 0 <= low <= successes / count <= high <= 1
    assert (low, high) == pytest.approx(wilson(successes, count), abs=1e-9)


@pytest.mark.parametrize(
    "values", [[0.1, 0.9], [1.0] * 9 + [0.0], [float(n) for n in range(60)], [0.5, 0.5, 0.75]]
)
def test_a_mean_is_inside_its_interval(values: list[float]) -> None:
    low, high = mean_interval(values)
    assert min(values) <= low <= sum(values) / len(values) <= high <= max(values)
    assert low < high


def test_the_same_values_give_the_same_interval() -> None:
    values = [float(n % 7) for n in range(50)]
    assert mean_interval(values) == mean_interval(list(values))


def test_a_mean_of_many_has_the_normal_interval() -> None:
    values = [float(n % 10) for n in range(400)]
    low, high = mean_interval(values)
    half = 1.96 * math.sqrt(8.25 / 400)
    assert (low, high) == pytest.approx((4.5 - half, 4.5 + half), abs=0.03)


def test_values_that_are_all_alike_leave_no_doubt() -> None:
    assert mean_interval([0.4] * 20) == pytest.approx((0.4, 0.4))
    assert mean_interval([3.0]) == (3.0, 3.0)
    assert ratio_interval([6.0], [4.0]) == (1.5, 1.5)


def test_a_loss_per_token_weighs_rows_by_their_tokens() -> None:
    losses, tokens = [10.0, 90.0], [10, 30]
    low, high = ratio_interval(losses, tokens)
    # Resamples of two rows: both the first, both the second, or one of each.
    assert (low, high) == (1.0, 3.0)
    assert low <= sum(losses) / sum(tokens) == 2.5 <= high


def test_memory_is_bounded_and_changes_nothing_but_the_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = [float(n % 10) for n in range(300)]
    whole = mean_interval(values)
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 30_000)
    assert mean_interval(values) == pytest.approx(whole, abs=0.1)


def test_every_numerator_needs_its_denominator() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_interval([1.0, 2.0], [1.0])
