"""95% intervals by formula and by a resampling of its own (for check_scores.py).

Wilson (1927); Newcombe (1998), method 10; percentile bootstrap, its level widened for few rows by
Hesterberg (2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
NORMAL = NormalDist()
Z = NORMAL.inv_cdf(0.975)
DRAWS, DRAWS_AT_ONCE = 8000, 500
# ftcli draws 2,000 times; its ends may be so many standard errors of that off.
FTCLI_DRAWS, MOST_ERRORS = 2000, 4.0
# … or so much of the interval's width.
WIDTH_SHARE = 0.1


def wilson(hits: float, rows: int) -> Interval:
    """Score interval of a share: the roots of (p̂ - p)² = z² p (1 - p) / n."""
    share, z2 = hits / rows, Z * Z
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Of the second share less the first, each row a hit (1) or a miss (0) of both."""
    rows = len(first)
    cells = [[0, 0], [0, 0]]
    for a, b in zip(second, first, strict=True):
        cells[1 - round(a)][1 - round(b)] += 1
    (both, only_second), (only_first, neither) = cells
    p1, p2 = (both + only_second) / rows, (both + only_first) / rows
    (l1, u1), (l2, u2) = wilson(p1 * rows, rows), wilson(p2 * rows, rows)
    margins = (
        (both + only_second)
        * (only_first + neither)
        * (both + only_first)
        * (only_second + neither)
    )
    lead = float(both * neither - only_second * only_first)
    if lead > 0:
        lead = max(lead - rows / 2, 0.0)
    phi = lead / math.sqrt(margins) if margins else 0.0
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return p1 - p2 - math.sqrt(max(down, 0.0)), p1 - p2 + math.sqrt(max(up, 0.0))


@dataclass(frozen=True)
class Resampled:
    """Draws of a statistic, in order, and the level at which percentiles are taken."""

    draws: Array
    tail: float
    """Share of the draws below the lower end, and above the upper one."""

    @property
    def interval(self) -> Interval:
        low, high = np.quantile(self.draws, [self.tail, 1 - self.tail])
        return float(low), float(high)

    def agrees(self, found: Sequence[float]) -> bool:
        """Whether another resampling's interval differs from this one by chance alone.

        Near in value, or at the same rank: a statistic of few rows takes few values.
        """
        low, high = self.interval
        near = WIDTH_SHARE * (high - low) + 1e-9 * max(abs(low), abs(high))
        return (abs(found[0] - low) <= near or _ranks_alike(self.draws, found[0], self.tail)) and (
            abs(found[1] - high) <= near or _ranks_alike(-self.draws[::-1], -found[1], self.tail)
        )


def _ranks_alike(draws: Array, value: float, tail: float) -> bool:
    """Whether the share of the draws below a value is `tail` but for chance.

    The root of a count has a standard error of 1/2, whatever the count.
    """
    slack = 1e-12 * abs(value)
    below = float(np.searchsorted(draws, value - slack, "left")) / len(draws)
    until = float(np.searchsorted(draws, value + slack, "right")) / len(draws)
    least, most = (math.sqrt(FTCLI_DRAWS * share) for share in (below, until))
    error = MOST_ERRORS / 2 * math.sqrt(1 + FTCLI_DRAWS / len(draws))
    return least - error <= math.sqrt(FTCLI_DRAWS * tail) <= most + error


def resampled_ratio(tops: Sequence[float], bottoms: Sequence[float]) -> Resampled:
    """Of Σ top ÷ Σ bottom, by drawing rows."""
    return _resampled([tops, bottoms], paired=False)


def resampled_difference(
    first: tuple[Sequence[float], Sequence[float]], second: tuple[Sequence[float], Sequence[float]]
) -> Resampled:
    """Of the first ratio of sums less the second, a row drawn for both at once."""
    return _resampled([*first, *second], paired=True)


def _resampled(columns: Sequence[Sequence[float]], *, paired: bool) -> Resampled:
    table = np.array(columns, dtype=np.float64).T
    rows = len(table)
    # How often each row is drawn, instead of which rows are drawn.
    generator = np.random.default_rng(1927)
    shares = np.full(rows, 1 / rows)
    sums = np.concatenate(
        [
            generator.multinomial(rows, shares, size=DRAWS_AT_ONCE) @ table
            for _ in range(DRAWS // DRAWS_AT_ONCE)
        ]
    )
    counts = (sums[:, 1::2] > 0).all(axis=1)
    ratios = sums[counts, 0::2] / sums[counts, 1::2]
    draws = ratios[:, 0] - ratios[:, 1] if paired else ratios[:, 0]
    return Resampled(np.sort(draws), _tail(rows))


@cache
def _tail(rows: int) -> float:
    """Φ(-√(n / (n - 1)) · t) with Student's t of n - 1 degrees of freedom at 97.5%."""
    if rows < 2:
        return 0.025
    return NORMAL.cdf(-math.sqrt(rows / (rows - 1)) * _student(rows - 1))


def _student(freedom: int) -> float:
    """97.5% point of Student's t: where the integral of its density from 0 is 0.475."""
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    constant /= math.sqrt(freedom * math.pi)

    def area(end: float) -> float:
        # With x = √freedom · tan(angle) the density is a power of a cosine.
        angles = np.linspace(0.0, math.atan(end / math.sqrt(freedom)), 2001)
        heights = np.cos(angles) ** (freedom - 1)
        return float(constant * math.sqrt(freedom) * np.trapezoid(heights, angles))

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if area(middle) < 0.475 else (low, middle)
    return low
