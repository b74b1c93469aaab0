"""Room on disk that a run takes."""

from __future__ import annotations

from ftcli.training.plan.choice import Plan

# What is kept beside the newest checkpoints: the best one, and the next one while it is written.
BESIDE = 2
# A full model is saved in the type of its base's files, which has at least so many bytes.
STORED_BYTES = 2


def checkpoint_bytes(plan: Plan) -> int:
    """The trained weights with the states of the optimizer."""
    each = 2 if plan.precision.value == "pure-bf16" else 4
    states = plan.estimate.breakdown["optimizer"] + plan.estimate.managed_bytes
    # An adapter's start was drawn at random or is another run's: it is kept with the step.
    starts = plan.estimate.breakdown.get("hold", 0) if plan.estimated.mode != "full" else 0
    return plan.estimate.trainable_parameters * each + states + starts


def run_bytes(plan: Plan, keep_checkpoints: int, beside_bytes: int = 0) -> int:
    """All checkpoints that are there at once, and what the run ends with.

    `beside_bytes` is saved with the trained weights: tokenizer, template, configuration.
    """
    estimate = plan.estimate
    each = STORED_BYTES if plan.estimated.mode == "full" else 4
    ends_with = estimate.trainable_parameters * each + beside_bytes
    return checkpoint_bytes(plan) * min(keep_checkpoints + BESIDE, _saves(plan)) + ends_with


def _saves(plan: Plan) -> int:
    """How often a run is saved at most, with its validations."""
    steps = plan.steps.value
    return steps // plan.save_every.value + steps // plan.eval_every.value + 1
