"""What a merge is judged by: the sum of base and adapter, and what the stored type rounds away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ftcli.evaluation.statistics import paired_ratio_interval
from ftcli.runs.results import Interval

if TYPE_CHECKING:
    from ftcli.export.parity import Parity

# Limits of the largest logit difference for a sum rounded once to fp32: ten times what sound merges
# show in either arithmetic (docs/results.md), and less than a thousandth of an update causes.
MAX_LOGIT_DIFFERENCE = {"float64": 1e-3, "float32": 1e-2}
# Nats per token from which on a stored type has a cost that shows: 0.1% of perplexity. The KL of a
# small model is 3e-2 in bf16 and 1e-6 in fp16.
SHOWS = 1e-3
# fp16 ends at 65,504; rows that are not measured may reach twice as far as those that are.
MAX_FP16_ACTIVATION = 65_504 / 2
# KL of a merge onto the original base of a QLoRA run (a small model: 0.33; without adapter 2.14).
MAX_MISMATCH_KL = 1e-2

PASS, ALLOWED = "pass", "mismatch allowed"


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
        return self.max_logit_difference <= self.limit  # false for NaN


def exactness_of(found: Parity, compared_in: str) -> Exactness:
    limit = MAX_LOGIT_DIFFERENCE[compared_in]
    return Exactness(found.kl, found.max_logit_difference, compared_in, limit)


@dataclass(frozen=True)
class RoundingCost:
    """What a stored type costs, against the same weights in fp32; losses in nats per label."""

    dtype: str
    kl: float
    """KL(in fp32 ‖ as stored), nats per token."""
    top1_agreement: float
    loss_before: float
    loss: float
    loss_difference: float
    loss_difference_interval: Interval
    """95%, paired by rows."""

    @property
    def shows(self) -> bool:
        """Whether answers are worse for it; NaN shows, too."""
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


def dtype_reason(costs: Sequence[RoundingCost], passed_over: Sequence[str]) -> str:
    """Why the last of the types tried is stored; `passed_over` says why others were not tried."""
    *others, taken = costs
    if taken.dtype == "float32":
        reason = "nothing is rounded"
    elif others:
        reason = "costs nothing that shows"
    else:
        reason = "the type of the base's files costs nothing that shows"
    would_cost = []
    for cost in others:
        low, high = cost.loss_difference_interval
        loss = f"{cost.loss_difference:+.4f} of loss (95% {low:+.4f} to {high:+.4f})"
        would_cost.append(f"{cost.dtype} would cost {loss}, KL {cost.kl:.1e}")
    return "; ".join([reason, *would_cost, *passed_over])


def overflow_of(dtype: str, largest_activation: float) -> str | None:
    """Why a type is wrong as arithmetic: the model computes larger numbers than it holds."""
    if dtype != "float16" or largest_activation <= MAX_FP16_ACTIVATION:
        return None
    return (
        f"activations of the model reach {largest_activation:.3g}, and fp16 arithmetic ends at "
        "65,504"
    )


@dataclass(frozen=True)
class Mismatch:
    """A merge onto the original base of a QLoRA run, against the model trained on 4 bits."""

    kl: float
    top1_agreement: float

    @property
    def passes(self) -> bool:
        return self.kl <= MAX_MISMATCH_KL

    def in_words(self) -> str:
        # KL(p ‖ q): how much lower the log-likelihood of a token drawn from p is under q.
        perplexity = math.exp(min(self.kl, 100.0))
        return (
            "the adapter was trained on weights rounded to 4 bits, and those of the original base "
            f"are not rounded. KL {self.kl:.2g} nats a token: what the trained model writes is to "
            f"the merged one {perplexity:.3g} times as perplexing as to itself; at "
            f"{1 - self.top1_agreement:.1%} of the tokens it would write another one"
        )
