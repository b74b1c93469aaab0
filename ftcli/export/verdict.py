"""The checks of a merge: equal to base + adapter before rounding, and the cost of rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ftcli.evaluation.statistics import paired_ratio_interval
from ftcli.runs.results import Interval

if TYPE_CHECKING:
    from ftcli.export.parity import Parity

# Limits of the largest logit difference of a sum rounded once to fp32: ten times that of correct
# merges (docs/results.md), and less than losing a thousandth of an update causes.
MAX_LOGIT_DIFFERENCE = {"float64": 1e-3, "float32": 1e-2}
# Measurable cost of a stored type, nats per token: 0.1% of perplexity. The KL of a small model is
# 3e-2 in bf16 and 1e-6 in fp16.
MEASURABLE = 1e-3
# fp16 ends at 65,504; other rows may have activations twice as large as the measured ones.
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
    """The cost of a stored type against the same weights in fp32; losses in nats per label."""

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
    def is_measurable(self) -> bool:
        """Whether predictions are worse for it; true for NaN."""
        worse = self.loss_difference >= MEASURABLE and self.loss_difference_interval[0] > 0
        return worse or not self.kl < MEASURABLE

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"shows": self.is_measurable}


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
    """Why the last type tried is stored; `passed_over`: why others were not tried."""
    *others, taken = costs
    if taken.dtype == "float32":
        reason = "nothing is rounded"
    elif others:
        reason = "no measurable cost"
    else:
        reason = "the type of the base's files; no measurable cost"
    would_cost = []
    for cost in others:
        low, high = cost.loss_difference_interval
        loss = f"{cost.loss_difference:+.4f} of loss (95% {low:+.4f} to {high:+.4f})"
        would_cost.append(f"{cost.dtype} would cost {loss}, KL {cost.kl:.1e}")
    return "; ".join([reason, *would_cost, *passed_over])


def overflow_of(dtype: str, largest_activation: float) -> str | None:
    """Why the model cannot compute in a type: its activations overflow."""
    if dtype != "float16" or largest_activation <= MAX_FP16_ACTIVATION:
        return None
    return f"activations of the model reach {largest_activation:.3g}; fp16 ends at 65,504"


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
            "the adapter was trained on weights rounded to 4 bits, the original base has other "
            f"weights. KL {self.kl:.2g} nats per token: on text of the trained model, the merged "
            f"model's perplexity is {perplexity:.3g} times as high; {1 - self.top1_agreement:.1%} "
            "of the most likely tokens differ"
        )
