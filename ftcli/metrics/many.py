"""Several comparisons at once: which of them hold together.

Of twelve scores that nothing has changed, one differs at 95% in almost every second evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

# An error of 5% over all comparisons, as their intervals of 95% have it one by one.
LEVEL = 0.05
# Standard errors from the middle of a 95% interval to its end: 1.96.
REACH = NormalDist().inv_cdf(1 - LEVEL / 2)


def p_value(difference: float, interval: tuple[float, float]) -> float:
    """Of no difference, from the difference and its 95% interval alone; 0 where they are one.

    An approximation (Altman and Bland 2011, BMJ 343, d2304): errors are taken as normal, as large
    as the interval has them towards zero, so that one that ends at zero gives 0.05. Of few rows
    tails are heavier than that: with ten, a p of 0.004 should be about 0.01.
    """
    low, high = interval
    reach = difference - low if difference > 0 else high - difference
    if reach <= 0:  # resampling may leave the difference itself out
        reach = (high - low) / 2
    if not difference or not math.isfinite(reach):
        return 1.0
    if reach <= 0:
        return 0.0
    return math.erfc(abs(difference) / (reach / REACH) / math.sqrt(2))  # 2 (1 - Φ(z))


def holm(p_values: Sequence[float], level: float = LEVEL) -> tuple[bool, ...]:
    """Which of the comparisons are shown, with a chance of `level` that any of them is none.

    Holm 1979, Scandinavian Journal of Statistics 6, 65-70: the smallest p is held against level
    ÷ m, the next against level ÷ (m - 1), until one fails. It holds however they hang together.
    """
    shown = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for left, index in zip(range(len(order), 0, -1), order, strict=True):
        if not p_values[index] <= level / left:
            break
        shown[index] = True
    return tuple(shown)
