"""95% intervals from maintained statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

CONFIDENCE = 0.95
RESAMPLES = 2000
SWAPS = 9_999
DRAWN_AT_ONCE = 4_000_000  # rows × resamples held in memory: 32 MB an array
SEED = 0  # the same answers give the same interval

Interval = tuple[float, float]
Ratio = tuple[Sequence[float], Sequence[float]]
"""Numerators and denominators, row by row."""


def share_interval(successes: int, count: int) -> Interval:
    """Wilson's score interval of a share."""
    from scipy.stats import binomtest

    found = binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float]) -> Interval:
    """Percentile bootstrap over rows."""
    return ratio_interval(values, [1.0] * len(values))


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Percentile bootstrap over rows of Σ numerators / Σ denominators (loss per token)."""
    if len(numerators) < 2 or len(set(zip(numerators, denominators, strict=True))) == 1:
        value = sum(numerators) / sum(denominators)
        return value, value
    return _bootstrap((numerators, denominators), _ratio)


def paired_ratio_interval(first: Ratio, second: Ratio) -> Interval:
    """Percentile bootstrap over rows of the second ratio of sums less the first.

    A row is drawn for both at once: what makes it hard for both is taken off.
    """
    rows = list(zip(*first, *second, strict=True))
    if len(rows) < 2 or len(set(rows)) == 1:
        value = sum(second[0]) / sum(second[1]) - sum(first[0]) / sum(first[1])
        return value, value
    return _bootstrap(
        (*first, *second),
        lambda top, bottom, other_top, other_bottom, axis: (
            _ratio(other_top, other_bottom, axis) - _ratio(top, bottom, axis)
        ),
    )


def paired_share_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Of the second share of hits less the first, each row a hit (1) or a miss (0) of both.

    Newcombe (1998, Statistics in Medicine 17, 2635–2650), method 10: two Wilson intervals and the
    correlation of the pairs. It keeps its width where resampling sees none (0 of 40 against 40 of
    40).
    """
    pairs = Counter(zip(first, second, strict=True))
    both, neither = pairs[1, 1], pairs[0, 0]
    ours, theirs = pairs[1, 0], pairs[0, 1]
    rows = len(first)
    p1, p2 = (both + ours) / rows, (both + theirs) / rows
    (l1, u1), (l2, u2) = share_interval(both + ours, rows), share_interval(both + theirs, rows)
    phi = _phi(both, ours, theirs, neither)
    value = p2 - p1
    down, up = (p2 - l2, u1 - p1), (u2 - p2, p1 - l1)
    return value - _length(*down, phi), value + _length(*up, phi)


def swapped_p_value(first: Ratio, second: Ratio) -> float:
    """Of no difference between two ratios of sums, two-sided.

    Where the sides do not differ, swapping them within any row changes nothing: the share of SWAPS
    random swaps with a difference at least as large, the observed one counted (Phipson and Smyth
    2010). It makes no assumption about the values.
    """
    import numpy as np

    tops, bottoms, other_tops, other_bottoms = (
        np.asarray(column, dtype=np.float64) for column in (*first, *second)
    )
    rng = np.random.default_rng(SEED)

    def difference(swapped: Any) -> Any:
        to_tops, to_bottoms = swapped @ (other_tops - tops), swapped @ (other_bottoms - bottoms)
        ours = (tops.sum() + to_tops) / _at_least(bottoms.sum() + to_bottoms)
        theirs = (other_tops.sum() - to_tops) / _at_least(other_bottoms.sum() - to_bottoms)
        return theirs - ours

    observed = abs(float(difference(np.zeros((1, len(tops))))[0]))
    as_large, done = 0, 0
    while done < SWAPS:
        draws = min(SWAPS - done, max(1, DRAWN_AT_ONCE // len(tops)))
        swapped = rng.random((draws, len(tops))) < 0.5
        found = np.abs(difference(swapped.astype(np.float64)))
        as_large += int((found >= observed * (1 - 1e-9) - 1e-15).sum())
        done += draws
    return (as_large + 1) / (SWAPS + 1)


def _length(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))


def _phi(both: int, ours: int, theirs: int, neither: int) -> float:
    """Correlation of the pairs, drawn towards 0 as Newcombe does."""
    product = (both + ours) * (theirs + neither) * (both + theirs) * (ours + neither)
    if not product:
        return 0.0
    lead = float(both * neither - ours * theirs)
    if lead > 0:
        lead = max(lead - (both + ours + theirs + neither) / 2, 0.0)
    return lead / math.sqrt(product)


def _ratio(top: Any, bottom: Any, axis: int) -> Any:
    return top.sum(axis=axis) / _at_least(bottom.sum(axis=axis))


def _at_least(bottoms: Any) -> Any:
    """A resample in which nothing counts has a score of 0."""
    import numpy as np

    return np.maximum(bottoms, np.finfo(np.float64).tiny)


def _bootstrap(columns: Sequence[Sequence[float]], statistic: Callable[..., Any]) -> Interval:
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        tuple(np.asarray(column, dtype=np.float64) for column in columns),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // len(columns[0])),
        confidence_level=_expanded(len(columns[0])),
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    low, high = found.confidence_interval
    return float(low), float(high)


def _expanded(rows: int) -> float:
    """The level at which percentiles of few rows cover what they say (Hesterberg 2015, The American
    Statistician 69, 371-386): resampling sees (n - 1)/n of the variance, and Student's t the rest.
    """
    from scipy.stats import norm, t

    further = math.sqrt(rows / (rows - 1)) * t.ppf((1 + CONFIDENCE) / 2, rows - 1)
    return float(1 - 2 * norm.cdf(-further))
