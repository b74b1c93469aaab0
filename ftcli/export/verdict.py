"""What a merge is judged by: the sum of base and adapter, and what the stored type rounds away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ftcli.evaluation.intervals import Interval, paired_ratio_interval

if TYPE_CHECKING:
    from ftcli.export.parity import Parity

# A sum rounded once to fp32, seen through all layers: an order above what sound merges show in
# either arithmetic (docs/results.md), and below what a thousandth of an update does.
FURTHEST_LOGIT = {"float64": 1e-3, "float32": 1e-2}
# Nats a token from which on a stored type costs something that shows: a tenth of a percent of
# perplexity. Of bf16 on a small model KL says 3e-2, fp16 1e-6.
SHOWS = 1e-3
# fp16 ends at 65,504; rows that are not measured may reach twice as far as those that are.
FURTHEST_IN_FP16 = 65_504 / 2
# Of a merge onto the original base of a QLoRA run (measured on a small model: 0.33, where no
# adapter at all gives 2.14).
HIGHEST_DRIFT = 1e-2

PASS, DRIFT = "pass", "drift accepted"


@dataclass(frozen=True)
class Exactness:
    """The merge before its weights are rounded, against base + adapter."""

    kl: float
    max_logit_difference: float
    compared_in: str
    limit: float
    """Of the largest logit difference."""

    @property
    def passes(self) -> bool:
        return self.max_logit_difference <= self.limit  # false for what is no number


def figures_of(found: Parity) -> dict[str, Any]:
    """How far the stored model is from the trained one, whatever the reason."""
    return {
        "kl": found.kl,
        "top1_agreement": found.top1_agreement,
        "max_logit_difference": found.max_logit_difference,
        "tokens": found.tokens,
    }


def exactness_of(found: Parity, compared_in: str) -> Exactness:
    limit = FURTHEST_LOGIT[compared_in]
    return Exactness(found.kl, found.max_logit_difference, compared_in, limit)


@dataclass(frozen=True)
class RoundingCost:
    """What a stored type costs, against the same weights in fp32; losses in nats a label token."""

    dtype: str
    kl: float
    """KL(in fp32 ‖ as stored), nats a token."""
    top1_agreement: float
    loss_before: float
    loss: float
    loss_difference: float
    loss_difference_interval: Interval
    """95%, paired by rows."""

    @property
    def shows(self) -> bool:
        """Whether answers are worse for it; what is no number shows, too."""
        worse = self.loss_difference >= SHOWS and self.loss_difference_interval[0] > 0
        return worse or not self.kl < SHOWS

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"shows": self.shows}


def cost_of(found: Parity, dtype: str) -> RoundingCost:
    first = (found.reference_losses, found.label_tokens)
    second = (found.losses, found.label_tokens)
    before, after = (sum(losses) / sum(tokens) for losses, tokens in (first, second))
    difference = after - before
    interval = (difference, difference)
    if math.isfinite(difference):
        interval = paired_ratio_interval(first, second)
    return RoundingCost(dtype, found.kl, found.top1_agreement, before, after, difference, interval)


def reason_of(costs: Sequence[RoundingCost], passed_over: Sequence[str], *, asked: bool) -> str:
    """Why the last of the types tried is the one that is stored; `passed_over` were not tried."""
    *others, taken = costs
    if asked:
        return "as asked"
    if taken.dtype == "float32":
        found = "nothing is rounded"
    elif others:
        found = "costs nothing that shows"
    else:
        found = "the type of the base's files costs nothing that shows"
    would_cost = [f"{cost.dtype} would cost {_loss(cost)}" for cost in others]
    return "; ".join([found, *would_cost, *passed_over])


def _loss(cost: RoundingCost) -> str:
    low, high = cost.loss_difference_interval
    return f"{cost.loss_difference:+.4f} of loss (95% {low:+.4f} to {high:+.4f}), KL {cost.kl:.1e}"


def overflow_of(dtype: str, largest_activation: float) -> str | None:
    """What is wrong with a type as arithmetic, where the model computes larger numbers."""
    if dtype != "float16" or largest_activation <= FURTHEST_IN_FP16:
        return None
    return (
        f"activations of the model reach {largest_activation:.3g}, and fp16 arithmetic ends at "
        "65,504"
    )


@dataclass(frozen=True)
class Drift:
    """A merge onto the original base of a QLoRA run, against what was trained on 4 bits."""

    kl: float
    top1_agreement: float

    @property
    def passes(self) -> bool:
        return self.kl <= HIGHEST_DRIFT

    def in_words(self) -> str:
        # KL(p ‖ q) is by how much the log-likelihood of a token that p draws is lower under q.
        perplexity = math.exp(min(self.kl, 100.0))
        return (
            "the adapter was trained on weights rounded to 4 bits, and those of the original base "
            f"are not rounded. KL {self.kl:.2g} nats a token: what the trained model writes is to "
            f"the merged one {perplexity:.3g} times as perplexing as to itself; at "
            f"{1 - self.top1_agreement:.1%} of the tokens it would write another one"
        )


def drift_of(found: Parity) -> Drift:
    return Drift(found.kl, found.top1_agreement)
