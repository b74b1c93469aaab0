"""What each choice of a plan saves or costs of a step on a GPU, by the roofline of
ftcli.memory.speed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ftcli.errors import MachineError
from ftcli.memory import Choices
from ftcli.memory.architecture import Architecture
from ftcli.memory.speed import rates_of, require_timed, step_time
from ftcli.training.plan.plan import Plan

# Smaller shares are not worth a word.
LEAST = 0.01
# Key of a choice → its field of the estimate.
TIMED = {
    "optimizations.fused_lora": "optimized",
    "optimizations.liger": "liger",
    "training.tiled_mlp": "tiled_mlp",
    "training.embedding_offload": "embedding_offload",
    "training.activation_offload": "activation_offload",
}


def with_gains(plan: Plan, architecture: Architecture) -> dict[str, str]:
    """The plan's reasons, with the time of a step that each choice saves or costs where a GPU's
    speed is known."""
    reasons = dict(plan.reasons)
    for key, gain in (*_of_tokens(plan), *_of_time(plan, architecture)):
        if key in reasons:
            reasons[key] += f"; {gain}"
    return reasons


def _of_tokens(plan: Plan) -> list[tuple[str, str]]:
    """Of packing and sharing: the tokens that a step has less."""
    found, rows = [], plan.rows
    if not plan.training.packing or plan.hardware.kind != "cuda":
        return []
    padded = rows.longest_tokens / rows.mean_tokens
    if padded >= 1 + LEAST:
        words = f"padded rows would have up to {padded:.1f} times the tokens"
        found.append(("training.packing", words))
    if plan.common_tokens:
        batch = plan.training.batch_size
        copies = batch - plan.estimated.gradient_accumulation
        share = copies * plan.common_tokens / (batch * rows.mean_tokens)
        if share >= LEAST:
            found.append(("optimizations.shared_prefix", f"{share:.0%} fewer tokens in a step"))
    return found


def _of_time(plan: Plan, architecture: Architecture) -> list[tuple[str, str]]:
    choices, rates = plan.estimated, rates_of(plan.hardware.name)
    if plan.hardware.kind != "cuda" or rates is None:
        return []
    try:
        require_timed(architecture, choices)
    except MachineError:
        return []

    def seconds(taken: Choices) -> float:
        return step_time(architecture, taken, rates).seconds

    found = []
    for key, field in TIMED.items():
        if not getattr(choices, field):
            continue
        without: dict[str, Any] = {field: False}
        change = seconds(choices) / seconds(replace(choices, **without)) - 1
        if abs(change) >= LEAST:
            direction = "less" if change < 0 else "more"
            words = f"about {abs(change):.0%} {direction} time a step (estimated)"
            found.append((key, words))
    return found
