from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.metrics.intervals import paired_ratio_interval, paired_share_interval
from ftcli.metrics.scorer import ExampleResult, ScoreKind
from ftcli.metrics.scores import (
    FEWEST_ROWS,
    MOST_ROWS_ADVISED,
    Counts,
    compared,
    gathered,
    percent,
    percents,
    rows_among,
)


def shares(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    """Hits of two sides whose rows fall into these four kinds."""
    ours = [1] * (both + first) + [0] * (second + neither)
    theirs = [1] * both + [0] * first + [1] * second + [0] * neither
    return ours, theirs


def counts(values: list[float]) -> Counts:
    return Counts(tuple(values), (1.0,) * len(values))


@pytest.mark.parametrize(
    ("rows", "interval"),
    [
        # By hand from the formulas: 48 of 50 against 38 of 50 without a correlation to see.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ],
)
def test_newcombes_interval(rows: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    ours, theirs = shares(*rows)
    assert paired_share_interval(theirs, ours) == pytest.approx(interval, abs=5e-5)


def test_turned_round_it_is_its_mirror() -> None:
    ours, theirs = shares(20, 12, 2, 16)
    low, high = paired_share_interval(ours, theirs)
    assert paired_share_interval(theirs, ours) == pytest.approx((-high, -low))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80))
def test_a_difference_of_shares_is_inside_its_interval(rows: list[tuple[int, int]]) -> None:
    ours, theirs = [row[0] for row in rows], [row[1] for row in rows]
    low, high = paired_share_interval(ours, theirs)
    assert -1 <= low <= (sum(theirs) - sum(ours)) / len(rows) <= high <= 1


@pytest.mark.parametrize(("rows", "ours", "theirs"), [(20, 0.3, 0.5), (60, 0.8, 0.85)])
def test_95_of_100_intervals_hold_the_true_difference(
    rows: int, ours: float, theirs: float
) -> None:
    draw = random.Random(7)
    held = 0
    for _ in range(400):
        # One draw for both in a third of the rows: what is hard is hard for both.
        pairs = [(a, a if draw.random() < 1 / 3 else draw.random()) for a in _draws(draw, rows)]
        hits = [[a < ours for a, _ in pairs], [b < theirs for _, b in pairs]]
        low, high = paired_share_interval(*hits)
        held += low <= theirs - ours <= high
    assert 0.92 <= held / 400 <= 0.985


def _draws(draw: random.Random, rows: int) -> list[float]:
    return [draw.random() for _ in range(rows)]


def test_intervals_of_few_rows_are_wide_enough() -> None:
    draw = random.Random(3)
    held = 0
    for _ in range(200):
        ours = [draw.expovariate(1) for _ in range(FEWEST_ROWS)]
        theirs = [a / 2 + draw.gammavariate(0.5, 1) for a in ours]
        ones = [1.0] * FEWEST_ROWS
        low, high = paired_ratio_interval((ours, ones), (theirs, ones))
        held += low <= 0 <= high
    assert held / 200 >= 0.88


def test_pairing_takes_off_what_makes_a_row_hard_for_both() -> None:
    draw = random.Random(1)
    ours = [10 * draw.random() for _ in range(40)]
    theirs = [value - 0.1 - 0.01 * draw.random() for value in ours]
    found = compared(counts(ours), counts(theirs), "lower")
    assert found is not None and found.word == "better"
    low, high = counts(ours).interval()
    assert high - low > 50 * (found.interval[1] - found.interval[0])


def test_a_base_that_never_and_a_tuned_that_always() -> None:
    found = compared(counts([0.0] * 40), counts([1.0] * 40), "higher")
    assert found is not None
    assert (found.value, found.word, found.rows_to_show) == (1.0, "better", None)
    assert 0.8 < found.interval[0] < 1  # resampling would see no doubt at all


@pytest.mark.parametrize(("better", "word"), [("higher", "worse"), ("lower", "better")])
def test_which_way_is_better(better: str, word: str) -> None:
    ours, theirs = counts([1.0] * 30), counts([0.0] * 30)
    found = compared(ours, theirs, better)  # type: ignore[arg-type]
    assert found is not None and found.word == word
    neither = compared(ours, theirs, None)
    assert neither is not None and neither.word == "changed"


def test_what_is_not_shown_says_how_many_rows_would_show_it() -> None:
    ours, theirs = shares(20, 4, 7, 9)
    found = compared(counts([float(v) for v in ours]), counts([float(v) for v in theirs]), "higher")
    assert found is not None and found.word == "no difference shown"
    assert found.rows_to_show is not None
    assert found.words == (
        f"no difference shown with 40 rows: take more (about {found.rows_to_show:,})"
    )
    # As many rows of the same kind do show it, and a quarter of them do not.
    for times, word in ((found.rows_to_show / 40, "better"), (2, "no difference shown")):
        more = shares(*(round(kind * times) for kind in (20, 4, 7, 9)))
        again = compared(*(counts([float(v) for v in side]) for side in more), "higher")
        assert again is not None and again.word == word


def test_sides_that_are_alike_in_every_row() -> None:
    found = compared(counts([0.0] * 24), counts([0.0] * 24), "higher")
    assert found is not None and found.words == "the same in each of 24 rows"


def test_a_handful_of_rows_gives_no_verdict() -> None:
    ours, theirs = [1.0, 2.0, 3.0], [2.1, 3.1, 4.2]
    few = compared(counts(ours), counts(theirs), "higher")
    assert few is not None and few.word == "no difference shown"
    assert few.words == "3 rows are too few to say"
    many = compared(counts(ours * 5), counts(theirs * 5), "higher")
    assert many is not None and many.word == "better"
    hits = compared(counts([0.0] * 5), counts([1.0] * 5), "higher")
    assert hits is not None and hits.word == "no difference shown"


def test_rows_that_count_for_one_side_alone_are_no_rows_to_compare() -> None:
    ours = Counts((1.0,) + (0.0,) * 39, (2.0,) + (0.0,) * 39)
    found = compared(ours, counts([1.0] * 40), "higher")
    assert found is not None and found.word == "no difference shown"
    assert found.words == "1 row is too few to say"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_no_number_gives_no_verdict(wrong: float) -> None:
    ours, theirs = [1.0] * 20, [1.0] * 19 + [wrong]
    found = compared(counts(ours), counts(theirs), "lower")
    assert found is not None and found.word == "no difference shown"
    assert found.rows_to_show is None


def test_rows_that_do_not_count_are_left_out() -> None:
    ours = Counts((1.0, 0.0, 0.0), (2.0, 0.0, 2.0))
    assert (ours.rows, ours.value, ours.are_hits) == (2, 0.25, False)
    nothing = Counts((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    assert compared(ours, nothing, "higher") is None


def test_a_share_is_weighed_by_rows_and_a_ratio_by_what_it_counts() -> None:
    assert Counts((1.0, 0.0), (1.0, 1.0)).are_hits
    precision = Counts((9.0, 0.0), (10.0, 1.0))
    assert precision.value == pytest.approx(9 / 11)
    assert not precision.are_hits


def test_scores_that_some_rows_do_not_name() -> None:
    kinds = {name: ScoreKind(name, "share", "higher") for name in ("a", "b", "c")}
    said = [ExampleResult({"a": (1, 1), "b": (1, 2)}), ExampleResult({"a": (0, 1)})]
    found = gathered(said, kinds)
    assert set(found) == {"a", "b"}
    assert found["a"].value == 0.5
    assert (found["b"].value, found["b"].rows) == (0.5, 1)


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
def test_nearly_all_is_not_shown_as_all(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_an_interval_is_rounded_outwards_alone() -> None:
    assert percents(0.0015, 0.0035) == ("0%", "<1%")
    assert percents(0.9969, 0.9985) == (">99%", "100%")
    assert percents(0.0, 1.0) == ("0%", "100%")


def test_rows_for_one_of_many_scores() -> None:
    assert rows_among(220, 1) == 220
    # By hand: z of 0.05 / 12 is 2.6383; ((2.6383 + 0.8416) / (1.9600 + 0.8416))² is 1.5428.
    assert rows_among(220, 6) == 340
    assert rows_among(MOST_ROWS_ADVISED, 1) == MOST_ROWS_ADVISED
    assert rows_among(MOST_ROWS_ADVISED, 2) is None
