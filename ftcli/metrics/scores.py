"""Scores of many answers: Σ top ÷ Σ bottom over the rows, its interval, and two sides compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from ftcli.metrics.intervals import (
    Interval,
    paired_ratio_interval,
    paired_share_interval,
    ratio_interval,
    share_interval,
)
from ftcli.metrics.many import LEVEL, REACH
from ftcli.metrics.scorer import Better, ExampleResult, ScoreKind

Word = Literal["better", "worse", "no difference shown", "changed", "no change shown"]

# Fewer rows get no verdict: an interval of 5 skewed rows covers 89% (simulated), and 5 wins of 5
# have one chance in 16 where nothing differs.
FEWEST_ROWS = 10
# With as many rows as bring an interval's end to 0, a difference is found half the time; with as
# many times more, in 80%: ((1.96 + 0.84) / 1.96)².
FOR_80_PERCENT = 2.04
# Standard errors beyond a threshold that a difference is beyond in 80%: 0.84.
BEYOND = NormalDist().inv_cdf(0.8)
# Of sums in floating point: nearer to 0 or 1 than this a share is none or all.
NEARLY = 1e-9


@dataclass(frozen=True)
class Counts:
    """What each row adds to the top and to the bottom of one score, in the rows' order."""

    tops: tuple[float, ...]
    bottoms: tuple[float, ...]

    @property
    def rows(self) -> int:
        """Rows that count."""
        return sum(bottom > 0 for bottom in self.bottoms)

    @property
    def value(self) -> float:
        return sum(self.tops) / sum(self.bottoms)

    @property
    def are_hits(self) -> bool:
        """Whether each row is a hit, a miss, or does not count."""
        pairs = zip(self.tops, self.bottoms, strict=True)
        return all((top, bottom) in ((0, 0), (0, 1), (1, 1)) for top, bottom in pairs)

    def interval(self) -> Interval:
        """Of 95%: Wilson's for a share of rows, by resampling rows for all else."""
        if self.are_hits:
            return share_interval(round(sum(self.tops)), self.rows)
        kept = [pair for pair in zip(self.tops, self.bottoms, strict=True) if pair[1] > 0]
        return ratio_interval([top for top, _ in kept], [bottom for _, bottom in kept])


def mean_of(values: Sequence[float]) -> Counts:
    """A mean over rows."""
    return Counts(tuple(float(value) for value in values), (1.0,) * len(values))


def with_interval(name: str, value: float, interval: Interval) -> dict[str, Any]:
    """A score as `--json` prints it."""
    return {name: value, f"{name}_interval": list(interval)}


@dataclass(frozen=True)
class Difference:
    """One score of a second side less that of a first, over the same rows."""

    value: float
    interval: Interval
    rows: int
    counted: int
    """Of these rows, those that count for the side which has fewer of them."""
    word: Word
    rows_to_show: int | None
    """About how many rows show a difference of this size four times in five; none: it is shown, or
    is zero."""
    same: bool = False
    """Both sides are alike in every single row."""

    @property
    def words(self) -> str:
        if not self.word.startswith("no "):
            return self.word
        if self.same:
            return f"the same in each of {self.rows} rows"
        if self.counted < FEWEST_ROWS:
            return f"{self.counted} row{'s are' if self.counted != 1 else ' is'} too few to say"
        what = "difference" if self.word == "no difference shown" else "change"
        more = f" (about {self.rows_to_show:,})" if self.rows_to_show else ""
        rows = f"{self.rows} row{'s' if self.rows != 1 else ''}"
        return f"no {what} shown with {rows}: take more{more}"


# More rows than this are no advice.
MOST_ROWS_ADVISED = 100_000


def rows_among(rows: int, comparisons: int) -> int | None:
    """How many rows show among so many comparisons, the first of Holm's steps, what `rows` show
    in one alone, both four times in five; none: more than is any advice."""
    first = NormalDist().inv_cdf(1 - LEVEL / (2 * max(comparisons, 1)))
    wanted = math.ceil(rows * ((first + BEYOND) / (REACH + BEYOND)) ** 2 - NEARLY)
    return wanted if wanted <= MOST_ROWS_ADVISED else None


def percent(share: float) -> str:
    """`97%`; `>99%` and `<1%` of what rounding would call all or none and is not."""
    shown = f"{share:.0%}"
    if shown == "100%" and share < 1 - NEARLY:
        return ">99%"
    if shown == "0%" and share > NEARLY:
        return "<1%"
    return shown


def percents(low: float, high: float) -> tuple[str, str]:
    """Both ends of a share's interval, which rounding may widen: `97%`, `100%`."""
    return (
        percent(low) if low > 0.5 else f"{low:.0%}",
        percent(high) if high < 0.5 else f"{high:.0%}",
    )


def compared(first: Counts, second: Counts, better: Better | None) -> Difference | None:
    """The difference with its paired interval of 95%; none where no row counts for both."""
    pairs = zip(first.tops, first.bottoms, second.tops, second.bottoms, strict=True)
    kept = [pair for pair in pairs if pair[1] > 0 or pair[3] > 0]
    if not any(pair[1] > 0 for pair in kept) or not any(pair[3] > 0 for pair in kept):
        return None
    ours, theirs = Counts(*_columns(kept, 0)), Counts(*_columns(kept, 2))
    value = theirs.value - ours.value
    hits = ours.are_hits and theirs.are_hits and ours.rows == theirs.rows == len(kept)
    if hits:
        interval = paired_share_interval(ours.tops, theirs.tops)
    elif math.isfinite(value):
        interval = paired_ratio_interval((ours.tops, ours.bottoms), (theirs.tops, theirs.bottoms))
    else:
        interval = (math.nan, math.nan)
    counted = min(ours.rows, theirs.rows)
    enough = counted >= FEWEST_ROWS and all(map(math.isfinite, interval))
    shown = enough and not interval[0] <= 0 <= interval[1]
    word = _word(value, better) if shown else _no_word(better)
    wanted = None if shown else _wanted(value, interval, len(kept))
    same = ours == theirs
    return Difference(value, interval, len(kept), counted, word, wanted, same=same)


def _columns(rows: Sequence[tuple[float, ...]], start: int) -> tuple[tuple[float, ...], ...]:
    return tuple(row[start] for row in rows), tuple(row[start + 1] for row in rows)


def _word(value: float, better: Better | None) -> Word:
    if better is None:
        return "changed"
    return "better" if (value > 0) == (better == "higher") else "worse"


def _no_word(better: Better | None) -> Word:
    return "no change shown" if better is None else "no difference shown"


def _wanted(value: float, interval: Interval, rows: int) -> int | None:
    """An interval's width falls with the root of the rows; until it is the difference itself."""
    half = (interval[1] - interval[0]) / 2
    if not value or not half or not math.isfinite(half / value):
        return None
    wanted = math.ceil(rows * FOR_80_PERCENT * (half / value) ** 2)
    wanted = max(wanted, FEWEST_ROWS)
    return wanted if rows < wanted <= MOST_ROWS_ADVISED else None


def gathered(
    judgements: Sequence[ExampleResult], kinds: Mapping[str, ScoreKind]
) -> dict[str, Counts]:
    """Counts of each score; a score that a row does not name has nothing of that row."""
    found: dict[str, Counts] = {}
    for name in kinds:
        rows = [judgement.counts.get(name, (0.0, 0.0)) for judgement in judgements]
        counts = Counts(tuple(row[0] for row in rows), tuple(row[1] for row in rows))
        if counts.rows:
            found[name] = counts
    return found
