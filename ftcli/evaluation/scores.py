"""Scores of many answers: Σ numerator ÷ Σ denominator over the rows, and two sides compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ftcli.evaluation.intervals import (
    Interval,
    paired_ratio_interval,
    paired_share_interval,
    ratio_interval,
    share_interval,
    swapped_p_value,
)
from ftcli.evaluation.scorers.scorer import Better, ExampleResult, Question, Scorer

# Fewer rows get no verdict: an interval of 5 skewed rows covers 89% (simulated). Where only some
# rows count, intervals of fewer than 30 such rows were too narrow (simulated: 9.5% for 5%).
FEWEST_ROWS, FEWEST_COUNTING_ROWS = 10, 30
# An error of 5% over all comparisons shown together.
LEVEL = 0.05
# Of sums in floating point: nearer to 0 or 1 than this a share is none or all.
NEARLY = 1e-9


@dataclass(frozen=True)
class Counts:
    """What each row adds to the numerator and to the denominator of one score, in their order."""

    numerators: tuple[float, ...]
    denominators: tuple[float, ...]

    @property
    def n(self) -> int:
        """Rows that count."""
        return sum(denominator > 0 for denominator in self.denominators)

    @property
    def value(self) -> float:
        return sum(self.numerators) / sum(self.denominators)

    @property
    def are_hits(self) -> bool:
        """Whether each row is a hit, a miss, or does not count."""
        pairs = zip(self.numerators, self.denominators, strict=True)
        return all(pair in ((0, 0), (0, 1), (1, 1)) for pair in pairs)

    def interval(self) -> Interval:
        """Of 95%: Wilson's for a share of rows, by resampling rows for all else."""
        if self.are_hits:
            return share_interval(round(sum(self.numerators)), self.n)
        kept = [pair for pair in self._pairs() if pair[1] > 0]
        return ratio_interval([top for top, _ in kept], [bottom for _, bottom in kept])

    def of_rows(self) -> list[float | None]:
        """The score of each row alone; none where it does not count."""
        return [top / bottom if bottom > 0 else None for top, bottom in self._pairs()]

    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.numerators, self.denominators, strict=True))


def mean_of(values: Sequence[float]) -> Counts:
    """A mean over rows."""
    return Counts(tuple(float(value) for value in values), (1.0,) * len(values))


@dataclass(frozen=True)
class Comparison:
    """One score of a second side less that of a first, over the same rows."""

    difference: float
    interval: Interval
    """Of 95%, paired."""
    n: int
    """Rows that count for the side that has fewer of them."""
    rows_higher: int
    rows_lower: int
    p_value: float
    """Of no difference, by swapping the sides of rows at random."""
    too_few: bool
    """Too few rows count for a verdict."""


def compare(first: Counts, second: Counts) -> Comparison | None:
    """None where no row counts for both."""
    rows = list(zip(first.of_rows(), second.of_rows(), strict=True))
    used = [index for index, row in enumerate(rows) if row != (None, None)]
    ours, theirs = _only(first, used), _only(second, used)
    n = min(ours.n, theirs.n)
    if not n:
        return None
    difference = theirs.value - ours.value
    hits = ours.are_hits and theirs.are_hits
    if hits and ours.n == theirs.n == len(used):
        interval = paired_share_interval(ours.numerators, theirs.numerators)
    else:
        interval = paired_ratio_interval(_ratio(ours), _ratio(theirs))
    pairs = [(a, b) for a, b in rows if a is not None and b is not None]
    return Comparison(
        difference,
        interval,
        n,
        sum(b > a for a, b in pairs),
        sum(b < a for a, b in pairs),
        swapped_p_value(_ratio(ours), _ratio(theirs)),
        too_few=n < (FEWEST_ROWS if hits or n == len(rows) else FEWEST_COUNTING_ROWS),
    )


def _only(counts: Counts, rows: Sequence[int]) -> Counts:
    return Counts(
        tuple(counts.numerators[row] for row in rows),
        tuple(counts.denominators[row] for row in rows),
    )


def _ratio(counts: Counts) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return counts.numerators, counts.denominators


def holm(p_values: Sequence[float], level: float = LEVEL) -> tuple[bool, ...]:
    """Which of the comparisons are significant, with a chance of `level` that any of them is none.

    Holm 1979, Scandinavian Journal of Statistics 6, 65-70: the smallest p is compared with level
    ÷ m, the next with level ÷ (m - 1), until one fails. It holds however they depend.
    """
    significant = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for left, index in zip(range(len(order), 0, -1), order, strict=True):
        if not p_values[index] <= level / left:
            break
        significant[index] = True
    return tuple(significant)


def verdict_of(found: Comparison, better: Better, *, significant: bool) -> str:
    """`better`, `worse`, `not significant`, `too few rows`."""
    if found.too_few:
        return "too few rows"
    if not significant or not found.difference:
        return "not significant"
    return "better" if (found.difference > 0) == (better == "higher") else "worse"


def smallest_points(rows: int) -> int:
    """Points from which on so many rows show two shares to differ: half the width of the 95%
    interval of the difference of two shares of a half."""
    return math.ceil(100 * 1.96 * math.sqrt(0.5 / rows))


def percent(share: float) -> str:
    """`97%`; `>99%` and `<1%` of what rounding would call all or none and is not."""
    shown = f"{share:.0%}"
    if shown == "100%" and share < 1 - NEARLY:
        return ">99%"
    if shown == "0%" and share > NEARLY:
        return "<1%"
    return shown


@dataclass(frozen=True)
class ScoredAnswers:
    """The answers of one side scored."""

    results: Sequence[ExampleResult]
    """Row by row, of all scorers together."""
    counts: Mapping[str, Counts]


def score_answers(
    scorers: Sequence[Scorer],
    answers: Sequence[str],
    questions: Sequence[Question],
    done: Callable[[int], None],
) -> ScoredAnswers:
    """Every answer by every scorer; `done` is called with the number of rows so far."""
    results = []
    for answer, question in zip(answers, questions, strict=True):
        found = [scorer.score(answer, question) for scorer in scorers]
        counts = {name: pair for each in found for name, pair in each.counts.items()}
        findings = tuple(finding for each in found for finding in each.findings)
        results.append(ExampleResult(counts, findings))
        done(len(results))
    # A scorer may know its scores only once it has seen every question.
    return ScoredAnswers(
        results, gathered(results, [name for each in scorers for name in each.kinds])
    )


def gathered(results: Sequence[ExampleResult], names: Iterable[str]) -> dict[str, Counts]:
    """Counts of each score; a score that a row does not name has nothing of that row."""
    found: dict[str, Counts] = {}
    for name in names:
        rows = [result.counts.get(name, (0.0, 0.0)) for result in results]
        counts = Counts(tuple(row[0] for row in rows), tuple(row[1] for row in rows))
        if counts.n:
            found[name] = counts
    return found
