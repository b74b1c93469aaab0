"""What was decided, each choice with its reason: (recipe, shape, profile, hardware) → Plan."""

from __future__ import annotations

import math
from dataclasses import replace

from ftcli.config.recipe import Recipe
from ftcli.memory import Choices
from ftcli.memory.fit.bound import needed_bytes
from ftcli.memory.hardware import Hardware
from ftcli.memory.shapes import Shape
from ftcli.memory.trained import trainable_parameters
from ftcli.training.plan.arithmetic import (
    choose_attention,
    choose_hold,
    choose_learning_rate,
    choose_precision,
    choose_weights_dtype,
    require_hold,
    require_method,
)
from ftcli.training.plan.choice import Choice, Plan, Profile, profile_of
from ftcli.training.plan.memory import (
    fit_memory,
    least_checkpointing,
    require_optimizer,
    vram_choices,
    vram_method,
)
from ftcli.training.plan.schedule import choose_eval_every, choose_save_every, count_steps
from ftcli.training.plan.speed import (
    choose_fused_lora,
    choose_liger,
    choose_packing,
    choose_shared_prefix,
    require_packing,
    say_beside_packed,
    why_not_fused,
    why_not_shared,
    why_padded,
)

__all__ = [
    "Choice",
    "Plan",
    "Profile",
    "make_plan",
    "needed_bytes",
    "profile_of",
    "require_machine",
    "require_possible",
    "vram_choices",
    "vram_method",
]


def require_possible(recipe: Recipe, shape: Shape) -> None:
    """Raise what recipe and model alone prove, before any row is tokenised.

    ModelError: `method_refused`, `target_modules`, `layers`, `rank_pattern`, `modules_to_save`;
    UsageError: `gradient_checkpointing`, `hold`.
    """
    require_method(recipe.method, shape)
    least_checkpointing(recipe)
    require_hold(recipe)
    trainable_parameters(shape, Choices(**vram_method(recipe.method)))


def require_machine(recipe: Recipe, shape: Shape, hardware: Hardware) -> None:
    """Raise MachineError or UsageError where no plan is possible here, whatever the rows are."""
    precision = choose_precision(recipe, hardware)
    choose_weights_dtype(recipe, precision.value)
    choose_attention(recipe, shape, hardware)
    require_optimizer(recipe, hardware)
    require_packing(recipe, why_padded(recipe, shape, hardware))


def make_plan(recipe: Recipe, shape: Shape, profile: Profile, hardware: Hardware) -> Plan:
    """Decide everything the recipe leaves open.

    Raises ModelError (a method the model cannot take), MachineError (no memory, no such
    arithmetic here) and UsageError.
    """
    require_method(recipe.method, shape)
    precision = choose_precision(recipe, hardware)
    weights = choose_weights_dtype(recipe, precision.value)
    attention = choose_attention(recipe, shape, hardware)
    base = vram_choices(recipe, profile, precision.value, attention.value, hardware)
    padded = why_padded(recipe, shape, hardware)
    require_packing(recipe, padded)
    if padded is not None or why_not_shared(recipe) is not None:
        profile = replace(profile, common_tokens=0)
    fused = why_not_fused(recipe, hardware, base) is None and base.mode == "lora"
    liger = choose_liger(recipe, shape, hardware)
    base = replace(base, packed_rows=padded is None, fused_lora=fused)
    base = replace(base, liger=liger is not None and liger.value)
    fit = fit_memory(recipe, shape, profile, hardware, base)
    steps, epochs = count_steps(recipe, profile)
    packing = choose_packing(recipe, padded, fit.choices.tokens)
    eval_every = choose_eval_every(recipe, profile, steps.value)
    return Plan(
        hardware=hardware,
        precision=precision,
        weights_dtype=weights,
        attention=say_beside_packed(attention, padded),
        optimizer=fit.optimizer,
        learning_rate=choose_learning_rate(recipe),
        micro_batch=fit.micro_batch,
        accumulation=recipe.training.batch_size // fit.micro_batch.value,
        gradient_checkpointing=fit.checkpointing,
        steps=steps,
        epochs=epochs,
        warmup_steps=math.ceil(recipe.training.warmup_ratio * steps.value),
        eval_every=eval_every,
        save_every=choose_save_every(recipe, profile, eval_every.value),
        estimated=fit.choices,
        estimate=fit.estimate,
        packing=packing,
        shared_prefix=choose_shared_prefix(recipe, packing, profile.common_tokens),
        common_tokens=profile.common_tokens,
        fused_lora=choose_fused_lora(recipe, hardware, fit.choices),
        liger=liger,
        dequantised=fit.dequantised,
        replay=_replay(profile),
        hold=choose_hold(recipe, precision.value, fit.estimate.breakdown.get("hold", 0)),
    )


def _replay(profile: Profile) -> Choice[int] | None:
    replayed = profile.replayed_rows
    return Choice(replayed, profile.rows_in_words) if replayed else None
