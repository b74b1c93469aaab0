"""95% intervals from maintained statistics."""

from __future__ import annotations

from collections.abc import Sequence

CONFIDENCE = 0.95
RESAMPLES = 2000
DRAWN_AT_ONCE = 4_000_000  # rows × resamples held in memory: 32 MB an array
SEED = 0  # the same answers give the same interval

Interval = tuple[float, float]


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
    import numpy as np
    from scipy.stats import bootstrap

    if len(numerators) < 2 or len(set(zip(numerators, denominators, strict=True))) == 1:
        value = sum(numerators) / sum(denominators)
        return value, value
    found = bootstrap(
        (np.asarray(numerators), np.asarray(denominators)),
        lambda top, bottom, axis: top.sum(axis=axis) / bottom.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // len(numerators)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    low, high = found.confidence_interval
    return float(low), float(high)
