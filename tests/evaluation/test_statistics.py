"""Scores over many rows, their differences, and which of them are significant."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.evaluation import statistics
from ftcli.evaluation.scorers.scorer import ExampleResult
from ftcli.evaluation.scoring import collect_counts
from ftcli.evaluation.statistics import (
    LEVEL,
    MIN_COUNTING_ROWS,
    MIN_ROWS,
    Counts,
    compare,
    detectable_points,
    holm,
    mean_of,
    newcombe_interval,
    paired_ratio_interval,
    percent,
    permutation_p_value,
    ratio_interval,
    verdict_of,
    wilson_interval,
)


def mean_interval(values: list[float]) -> tuple[float, float]:
    return ratio_interval(values, [1.0] * len(values))


def test_wilson_of_57_in_60() -> None:
    assert wilson_interval(57, 60) == pytest.approx((0.8630, 0.9829), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_is_inside_its_interval(numbers: tuple[int, int]) -> None:
    successes, count = numbers
    low, high = wilson_interval(successes, count)
    assert 0 <= low <= successes / count <= high <= 1


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


def test_equal_values_have_an_interval_without_width() -> None:
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
    monkeypatch.setattr(statistics, "BATCH_VALUES", 30_000)
    assert mean_interval(values) == pytest.approx(whole, abs=0.1)


def test_every_numerator_needs_its_denominator() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_interval([1.0, 2.0], [1.0])


def successes(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    """Successes of two sides, by four kinds of rows."""
    ours = [1] * (both + first) + [0] * (second + neither)
    theirs = [1] * both + [0] * first + [1] * second + [0] * neither
    return ours, theirs


@pytest.mark.parametrize(
    ("rows", "interval"),
    [
        # By hand from the formulas: 48 of 50 against 38 of 50 without a correlation to see.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ],
)
def test_newcombes_interval(rows: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    ours, theirs = successes(*rows)
    assert newcombe_interval(theirs, ours) == pytest.approx(interval, abs=5e-5)


def test_swapped_sides_mirror_the_interval() -> None:
    ours, theirs = successes(20, 12, 2, 16)
    low, high = newcombe_interval(ours, theirs)
    assert newcombe_interval(theirs, ours) == pytest.approx((-high, -low))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80))
def test_a_difference_of_shares_is_inside_its_interval(rows: list[tuple[int, int]]) -> None:
    ours, theirs = [row[0] for row in rows], [row[1] for row in rows]
    low, high = newcombe_interval(ours, theirs)
    assert -1 <= low <= (sum(theirs) - sum(ours)) / len(rows) <= high <= 1


@pytest.mark.parametrize(("rows", "ours", "theirs"), [(20, 0.3, 0.5), (60, 0.8, 0.85)])
def test_95_of_100_intervals_cover_the_true_difference(
    rows: int, ours: float, theirs: float
) -> None:
    draw = random.Random(7)
    covered = 0
    for _ in range(400):
        # One draw for both sides in a third of the rows: they are correlated.
        pairs = [(a, a if draw.random() < 1 / 3 else draw.random()) for a in _draws(draw, rows)]
        hits = [[a < ours for a, _ in pairs], [b < theirs for _, b in pairs]]
        low, high = newcombe_interval(*hits)
        covered += low <= theirs - ours <= high
    assert 0.92 <= covered / 400 <= 0.985


def _draws(draw: random.Random, rows: int) -> list[float]:
    return [draw.random() for _ in range(rows)]


def test_intervals_of_few_rows_are_wide_enough() -> None:
    draw = random.Random(3)
    covered = 0
    for _ in range(200):
        ours = [draw.expovariate(1) for _ in range(MIN_ROWS)]
        theirs = [a / 2 + draw.gammavariate(0.5, 1) for a in ours]
        ones = [1.0] * MIN_ROWS
        low, high = paired_ratio_interval((ours, ones), (theirs, ones))
        covered += low <= 0 <= high
    assert covered / 200 >= 0.88


def test_pairing_removes_the_difficulty_of_rows() -> None:
    draw = random.Random(1)
    ours = [10 * draw.random() for _ in range(40)]
    theirs = [value - 0.1 - 0.01 * draw.random() for value in ours]
    found = compare(mean_of(ours), mean_of(theirs))
    assert found is not None and found.p_value == 1e-4
    assert (found.rows_higher, found.rows_lower) == (0, 40)
    low, high = mean_of(ours).interval()
    assert high - low > 50 * (found.interval[1] - found.interval[0])


def test_none_of_40_against_all_of_40() -> None:
    found = compare(mean_of([0.0] * 40), mean_of([1.0] * 40))
    assert found is not None and found.difference == 1.0
    assert 0.8 < found.interval[0] < 1  # a bootstrap would see no variance
    assert verdict_of(found, "higher", significant=True) == "better"
    assert verdict_of(found, "lower", significant=True) == "worse"
    assert verdict_of(found, "lower", significant=False) == "not significant"


@pytest.mark.parametrize("rows", [(20, 4, 7, 9), (10, 0, 9, 21), (3, 25, 8, 24), (30, 1, 6, 3)])
def test_swapping_agrees_with_the_exact_test_of_mcnemar(rows: tuple[int, int, int, int]) -> None:
    from scipy.stats import binomtest

    ours, theirs = successes(*rows)
    found = compare(mean_of(ours), mean_of(theirs))
    exact = binomtest(rows[2], rows[1] + rows[2]).pvalue
    assert found is not None and found.p_value == pytest.approx(exact, abs=0.015)


def test_swapping_agrees_with_the_exact_value_of_a_constant_shift() -> None:
    """Of 2**8 ways to swap 8 rows, two have as large a difference."""
    ours = [float(n) for n in range(8)]
    found = permutation_p_value((ours, [1.0] * 8), ([n + 1 for n in ours], [1.0] * 8))
    assert found == pytest.approx(2 / 2**8, abs=0.003)


def test_equal_sides_differ_in_no_row() -> None:
    found = compare(mean_of([0.0] * 24), mean_of([0.0] * 24))
    assert found is not None
    assert (found.rows_higher, found.rows_lower, found.p_value) == (0, 0, 1.0)


def test_few_rows_give_no_verdict() -> None:
    few = compare(mean_of([1.0] * 9), mean_of([2.0] * 9))
    assert few is not None and few.too_few
    assert verdict_of(few, "higher", significant=True) == "too few rows"
    enough = compare(mean_of([1.0] * MIN_ROWS), mean_of([2.0] * MIN_ROWS))
    assert enough is not None and not enough.too_few


def test_few_counting_rows_give_no_verdict() -> None:
    counting = MIN_COUNTING_ROWS - 1
    ours = Counts((1.0,) * counting + (0.0,) * 31, (2.0,) * counting + (0.0,) * 31)
    theirs = Counts((2.0,) * counting + (0.0,) * 31, (2.0,) * counting + (0.0,) * 31)
    found = compare(ours, theirs)
    assert found is not None and (found.n, found.too_few) == (counting, True)


def test_rows_that_count_for_one_side_only() -> None:
    ours = Counts((1.0,) + (0.0,) * 39, (2.0,) + (0.0,) * 39)
    found = compare(ours, mean_of([1.0] * 40))
    assert found is not None and (found.n, found.too_few) == (1, True)
    assert compare(ours, Counts((0.0,) * 40, (0.0,) * 40)) is None


def test_rows_that_do_not_count_are_left_out() -> None:
    ours = Counts((1.0, 0.0, 0.0), (2.0, 0.0, 2.0))
    assert (ours.n, ours.value, ours.is_binary) == (2, 0.25, False)
    assert ours.by_row() == [0.5, None, 0.0]


def test_a_proportion_is_binary_and_a_ratio_is_not() -> None:
    assert Counts((1.0, 0.0), (1.0, 1.0)).is_binary
    precision = Counts((9.0, 0.0), (10.0, 1.0))
    assert precision.value == pytest.approx(9 / 11)
    assert not precision.is_binary


def test_holm_on_a_textbooks_example() -> None:
    """0.01 ≤ 0.05/3, 0.005 ≤ 0.05/4 …: the third of the order is not small enough."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == (True, False, False, True)
    assert holm([0.04]) == (True,) and holm([0.04, 0.04]) == (False, False)
    assert holm([0.02, 0.04]) == (True, True) and holm([]) == ()


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_between_bonferroni_and_each_alone(p_values: list[float]) -> None:
    found = holm(p_values)
    for p, significant in zip(p_values, found, strict=True):
        assert (p <= LEVEL / len(p_values)) <= significant <= (p <= LEVEL)


def test_the_smallest_detectable_difference() -> None:
    assert [detectable_points(rows) for rows in (20, 60, 400)] == [31, 18, 7]


def test_scores_that_some_rows_do_not_have() -> None:
    said = [ExampleResult({"a": (1, 1), "b": (1, 2)}), ExampleResult({"a": (0, 1)})]
    found = collect_counts(said, ["a", "b", "c"])
    assert set(found) == {"a", "b"}
    assert found["a"].value == 0.5
    assert (found["b"].value, found["b"].n) == (0.5, 1)


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0%"),
        (0.004, "<1%"),
        (0.005, "<1%"),
        (0.006, "1%"),
        (0.97, "97%"),
        (0.994, "99%"),
        (0.996, ">99%"),
        (0.99999, ">99%"),
        (1.0, "100%"),
        (sum([0.1] * 10), "100%"),  # 0.9999999999999999
    ],
)
def test_a_proportion_near_1_is_not_shown_as_100_percent(share: float, shown: str) -> None:
    assert percent(share) == shown
