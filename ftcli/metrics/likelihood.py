"""How likely texts are to one model and to another: losses, their difference, forgetting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ftcli.metrics.intervals import Interval, ratio_interval


@dataclass(frozen=True)
class Scored:
    """Summed negative log-likelihood (nats) and counted tokens of each text, in one order."""

    losses: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Nats per token, over all texts."""
        return sum(self.losses) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


@dataclass(frozen=True)
class Difference:
    """How much more one model loses per token than another on the same texts."""

    value: float
    interval: Interval
    """Of 95%, by pairs: what makes a text hard for both models is taken off."""


@dataclass(frozen=True)
class Forgetting:
    """Perplexity of a general text before and after a training."""

    before: float
    after: float
    change: float
    """0.05: the perplexity is 5% greater after the training."""
    change_interval: Interval


def difference(first: Scored, second: Scored) -> Difference:
    """The loss of `second` less that of `first`; both are of the same texts in the same order."""
    if first.tokens != second.tokens:
        raise ValueError("the two models have read different texts")
    gaps = [b - a for a, b in zip(first.losses, second.losses, strict=True)]
    return Difference(sum(gaps) / sum(first.tokens), ratio_interval(gaps, first.tokens))


def forgetting(before: Scored, after: Scored) -> Forgetting:
    """The perplexity's change: a difference of losses is the logarithm of their ratio."""
    found = difference(before, after)
    low, high = found.interval
    return Forgetting(
        before.perplexity,
        after.perplexity,
        math.expm1(found.value),
        (math.expm1(low), math.expm1(high)),
    )
