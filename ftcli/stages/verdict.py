"""What a merge may change, what it has changed, and what that means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Below these a merged model is the one that was trained (measured on a small model: dequantise,
# then merge 3.6e-4; the original base 0.33; folding into 4-bit weights 2.45, where no adapter at
# all gives 2.14).
HIGHEST_KL = 1e-2
LOWEST_AGREEMENT = 0.99
# Of fp32 weights: a sum rounded once, seen through all layers in float64.
FURTHEST_LOGIT = 1e-4

PASS, DRIFT, FAIL = "pass", "drift accepted", "fail"


@dataclass(frozen=True)
class Limits:
    """What base + adapter and merged model may differ by; none: measured, not judged."""

    kl: float | None = None
    agreement_with_ties: float | None = None
    """Where two tokens are level to within a step of the weights' type, either is right."""
    max_logit_difference: float | None = None

    def as_json(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def exceeded(self, report: Mapping[str, Any]) -> list[str]:
        """Each figure beyond its limit, in words; what is no number is beyond any."""
        kl, agreement, logit = (report[name] for name in vars(self))
        found = []
        if self.kl is not None and not kl <= self.kl:
            found.append(f"KL {kl:.2g} (at most {self.kl:g})")
        if self.agreement_with_ties is not None and not agreement >= self.agreement_with_ties:
            least = self.agreement_with_ties
            found.append(f"top-1 agreement with near ties {agreement:.2%} (at least {least:.0%})")
        if self.max_logit_difference is not None and not logit <= self.max_logit_difference:
            limit = self.max_logit_difference
            found.append(f"largest logit difference {logit:.2g} (at most {limit:g})")
        return found


def limits_for(*, quantised: bool, onto: str, dtype: str) -> Limits:
    """The limits of a merge: of which kind of run, onto which base, into which type."""
    if onto == "original":
        return Limits(kl=HIGHEST_KL)
    if not quantised and dtype == "float32":
        return Limits(max_logit_difference=FURTHEST_LOGIT)
    return Limits(kl=HIGHEST_KL, agreement_with_ties=LOWEST_AGREEMENT)


def verdict_of(report: Mapping[str, Any], limits: Limits, *, accept_drift: bool) -> str:
    """`pass`, or what the merged model is instead."""
    if not limits.exceeded(report):
        return PASS
    return DRIFT if accept_drift and math.isfinite(report["kl"]) else FAIL


def drift_in_words(report: Mapping[str, Any]) -> str:
    """What the figures of a merge onto the original base mean."""
    # KL(p ‖ q) is by how much the log-likelihood of a token that p draws is lower under q.
    perplexity = math.exp(min(report["kl"], 100.0))
    others = 1 - report["top1_agreement"]
    return (
        "the adapter was trained on weights rounded to 4 bits, and those of the original base are "
        f"not rounded. KL {report['kl']:.2g} nats a token: what the trained model writes is to the "
        f"merged one {perplexity:.3g} times as perplexing as to itself; at {others:.1%} of the "
        "tokens it would write another one"
    )
