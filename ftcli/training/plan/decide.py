"""Resolve every `auto`, each with its reason: (recipe, architecture, rows, hardware) → Plan."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, assert_never

from ftcli.config.recipe import (
    Bottleneck,
    Full,
    Lora,
    PrefixTuning,
    PromptTuning,
    Qlora,
    Recipe,
)
from ftcli.errors import MachineError, UsageError
from ftcli.memory import Choices
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import (
    Attention,
    Precision,
    why_no_checkpointing,
    why_no_embedding_offload,
    why_no_tiles,
)
from ftcli.memory.fit.request import require_mode
from ftcli.memory.hardware import Hardware
from ftcli.memory.static import kept_dequantised_bytes
from ftcli.memory.trained import trainable_parameters
from ftcli.training.plan.gains import with_gains
from ftcli.training.plan.learning_rate import choose_learning_rate, require_l2_sp, why_l2_sp
from ftcli.training.plan.memory import (
    choose_micro_batch,
    fit_memory,
    require_gpu,
    why_optimizer,
    whys_of_checkpointing,
)
from ftcli.training.plan.optimizations import (
    choose_dequantised,
    choose_fused_lora,
    choose_liger,
    choose_packing,
    choose_shared_prefix,
    require_packing,
    why_not_shared,
    why_padded,
)
from ftcli.training.plan.plan import (
    AS_SET,
    Decided,
    Optimizations,
    Plan,
    PlannedModel,
    PlannedTraining,
    RowStatistics,
    choices_of,
    choices_of_method,
)

# Validations may take this share of the time that training takes.
VALIDATION_SHARE = 0.1
# A forward pass costs a third of a training step (Kaplan et al. 2020, section 2.1: 2N of 6N).
FORWARD_SHARE = 1 / 3
MOST_VALIDATIONS = 10
# Share of the time between two checkpoints that saving may take if save_steps is auto; the best
# weights, a signal and the end always save.
SAVE_SHARE = 0.02
SAVED_WHEN = f"one that would take over {SAVE_SHARE:.0%} of the time since the last is skipped"


def require_possible(recipe: Recipe, architecture: Architecture) -> None:
    """Raise errors that recipe and model alone show, before any row is tokenised.

    ModelError: `method_refused`, `target_modules`, `layers`, `rank_pattern`, `modules_to_save`;
    UsageError: `gradient_checkpointing`, `l2_sp`.
    """
    require_mode(recipe.method.mode, architecture)
    require_checkpointing(recipe, architecture)
    require_l2_sp(recipe)
    trainable_parameters(architecture, Choices(**choices_of_method(recipe.method)))


def require_machine(recipe: Recipe, architecture: Architecture, hardware: Hardware) -> None:
    """Raise MachineError or UsageError if no plan is possible here, whatever the rows are."""
    precision, _ = choose_precision(recipe, hardware)
    choose_dtype(recipe, precision)
    choose_attention(recipe, architecture, hardware)
    require_gpu(recipe, hardware)
    require_packing(recipe, why_padded(recipe, architecture, hardware))


def make_plan(
    recipe: Recipe, architecture: Architecture, rows: RowStatistics, hardware: Hardware
) -> Plan:
    """Decide everything that is `auto`; raises ModelError, MachineError and UsageError."""
    plan = _decided(recipe, architecture, rows, hardware)
    return plan.model_copy(update={"reasons": with_gains(plan, architecture)})


def _decided(
    recipe: Recipe, architecture: Architecture, rows: RowStatistics, hardware: Hardware
) -> Plan:
    _require_keys(recipe, architecture, hardware)
    reasons: dict[str, str] = {}
    precision, reasons["training.precision"] = choose_precision(recipe, hardware)
    dtype, reasons["model.dtype"] = choose_dtype(recipe, precision)
    attention, reasons["model.attention"] = choose_attention(recipe, architecture, hardware)
    padded = why_padded(recipe, architecture, hardware)
    require_packing(recipe, padded)
    if padded is None:
        reasons["model.attention"] += "; packed rows use their own"
    unshared = padded is not None or why_not_shared(recipe) is not None
    fitted = replace(rows, common_tokens=0) if unshared else rows
    base = _open_choices(recipe, architecture, rows, hardware, precision, attention)
    choices, estimate = fit_memory(recipe, architecture, fitted, hardware, base)
    reasons["training.optimizer"] = why_optimizer(recipe, hardware, choices)
    rate, reasons["training.learning_rate"] = choose_learning_rate(recipe)
    micro_batch, reasons["training.micro_batch_size"] = choose_micro_batch(
        recipe, choices, hardware
    )
    packing, reasons["training.packing"] = choose_packing(recipe, padded, choices.tokens)
    optimizations, whys = _optimizations(
        recipe, architecture, hardware, choices, packing, fitted.common_tokens
    )
    reasons |= whys
    reasons |= whys_of_checkpointing(recipe, architecture, choices)
    steps, epochs, reasons["steps"] = count_steps(recipe, rows)
    eval_steps, reasons["training.eval_steps"] = choose_eval_steps(recipe, rows, steps)
    save_steps, reasons["training.save_steps"] = choose_save_steps(recipe, rows, eval_steps)
    if rows.replayed_rows:
        reasons["rows.replayed_rows"] = rows.in_words
    if recipe.training.l2_sp:
        reasons["training.l2_sp"] = why_l2_sp(recipe, precision, estimate.breakdown["l2_sp"])
    training = {
        "precision": precision,
        "optimizer": choices.optimizer,
        "learning_rate": rate,
        "micro_batch_size": micro_batch,
        "packing": packing or False,
        "gradient_checkpointing": choices.gradient_checkpointing,
        "embedding_offload": choices.embedding_offload,
        "activation_offload": choices.offloading,
        "tiled_mlp": choices.tiling,
        "eval_steps": eval_steps,
        "save_steps": save_steps,
    }
    return Plan(
        model=PlannedModel(**recipe.model.model_dump() | {"attention": attention, "dtype": dtype}),
        method=recipe.method,
        training=PlannedTraining(**recipe.training.model_dump() | training),
        optimizations=optimizations,
        steps=steps,
        epochs=epochs,
        warmup_steps=math.ceil(recipe.training.warmup_ratio * steps),
        rows=rows,
        hardware=hardware,
        reasons=reasons,
        estimate=estimate,
    )


def _require_keys(recipe: Recipe, architecture: Architecture, hardware: Hardware) -> None:
    require_mode(recipe.method.mode, architecture)
    require_checkpointing(recipe, architecture)
    require_gpu(recipe, hardware)


def _open_choices(
    recipe: Recipe,
    architecture: Architecture,
    rows: RowStatistics,
    hardware: Hardware,
    precision: Precision,
    attention: Attention,
) -> Choices:
    """The estimator's inputs before memory decides the rest."""
    choices = choices_of(
        recipe.model.model_copy(update={"attention": attention}),
        recipe.method,
        recipe.training.model_copy(update={"precision": precision}),
        rows,
        hardware,
    )
    padded = why_padded(recipe, architecture, hardware)
    liger = choose_liger(recipe, architecture, hardware)
    recomputes = why_no_checkpointing(choices.mode, architecture) is None
    return replace(
        choices,
        packed_rows=padded is None,
        liger=liger is not None and liger[0],
        gradient_checkpointing=choices.gradient_checkpointing and recomputes,
    )


def _optimizations(
    recipe: Recipe,
    architecture: Architecture,
    hardware: Hardware,
    choices: Choices,
    packing: int,
    common_tokens: int,
) -> tuple[Optimizations, dict[str, str]]:
    """Optimisations of this training, and the reasons by key."""
    kept_bytes = kept_dequantised_bytes(architecture, choices)
    found = {
        "shared_prefix": choose_shared_prefix(recipe, packing, common_tokens),
        "fused_lora": choose_fused_lora(recipe, hardware, choices),
        "liger": choose_liger(recipe, architecture, hardware),
        "dequantised": choose_dequantised(recipe, hardware, choices, kept_bytes),
    }
    values = {name: None if each is None else each[0] for name, each in found.items()}
    whys = {f"optimizations.{name}": each[1] for name, each in found.items() if each is not None}
    return Optimizations(**values), whys


def require_checkpointing(recipe: Recipe, architecture: Architecture) -> None:
    """Raise UsageError (`gradient_checkpointing`) if method or model do not support it."""
    why = why_no_checkpointing(recipe.method.mode, architecture)
    training, why_not = recipe.training, why_no_tiles(recipe.method.mode, architecture)
    off = None
    if training.gradient_checkpointing is False:
        off = "set training.gradient_checkpointing to auto or true"
    if training.activation_offload is True and (why or off):
        raise UsageError(
            "activation_offload",
            "training.activation_offload: true keeps in RAM what gradient checkpointing keeps; "
            f"{why or off}",
        )
    if training.tiled_mlp is True and (why_not or off):
        reason = f"{why_not}; leave it to auto" if why_not else f"goes with checkpointing; {off}"
        raise UsageError("tiled_mlp", f"training.tiled_mlp: true {reason}")
    _require_embedding_offload(recipe, architecture)
    if why is not None and recipe.training.gradient_checkpointing is True:
        raise UsageError(
            "gradient_checkpointing",
            f"training.gradient_checkpointing: {why}; leave it to auto",
        )


def _require_embedding_offload(recipe: Recipe, architecture: Architecture) -> None:
    """Raise UsageError (`embedding_offload`) if embeddings or head cannot be in RAM."""
    why = why_no_embedding_offload(Choices(**choices_of_method(recipe.method)), architecture)
    if recipe.training.embedding_offload is True and why is not None:
        raise UsageError(
            "embedding_offload", f"training.embedding_offload: {why}; leave it to auto"
        )


def choose_precision(recipe: Recipe, hardware: Hardware) -> Decided[Precision]:
    """bf16 if the hardware supports it, else fp16 on a GPU and fp32 on a CPU."""
    asked = recipe.training.precision
    if asked != "auto":
        if asked == "fp16" and hardware.kind == "cpu":
            raise MachineError(
                "precision", "training.precision: fp16 needs a CUDA GPU; here: bf16, fp32"
            )
        if asked in ("bf16", "pure-bf16") and hardware.kind == "cuda" and not hardware.fast_bf16:
            raise MachineError(
                "precision",
                f"training.precision: {asked} needs a GPU of 2020 or later, and {hardware.name} "
                "would emulate it; leave it to auto (fp16)",
            )
        return asked, AS_SET
    if hardware.kind == "cpu" and not hardware.fast_bf16:
        return "fp32", f"{hardware.name} has no bf16 matrix units and emulates it slowly"
    if hardware.fast_bf16:
        capability = hardware.compute_capability
        known = f"compute capability {capability[0]}.{capability[1]}" if capability else None
        proof = known or ("this CPU" if hardware.kind == "cpu" else hardware.name)
        return "bf16", f"{proof} supports it: fast, with the range of fp32"
    return "fp16", f"{hardware.name} has no bf16; fp16 with loss scaling"


def choose_dtype(recipe: Recipe, precision: Precision) -> Decided[Literal["bf16", "fp16", "fp32"]]:
    """Type of the weights in memory; raises UsageError."""
    asked = recipe.model.dtype
    match recipe.method:
        case Full():
            if asked != "auto":
                raise UsageError(
                    "recipe",
                    "model.dtype: in full training the type of the weights depends on "
                    "training.precision (pure-bf16: 16-bit weights); remove it",
                )
            if precision == "pure-bf16":
                return "bf16", "training.precision: pure-bf16; small updates round to zero"
            return "fp32", "trained weights stay in fp32, so that small updates count"
        case Lora() | Qlora() | Bottleneck() | PrefixTuning() | PromptTuning():
            if asked != "auto":
                return asked, AS_SET
            if precision == "fp32":
                return "fp32", "as training.precision"
            kind: Literal["bf16", "fp16"] = "fp16" if precision == "fp16" else "bf16"
            return kind, "frozen weights, as training.precision"
        case _:
            assert_never(recipe.method)


def choose_attention(
    recipe: Recipe, architecture: Architecture, hardware: Hardware
) -> Decided[Attention]:
    """The attention kernel; raises MachineError."""
    asked = recipe.model.attention
    if asked == "flash" and hardware.kind != "cuda":
        raise MachineError("attention", "model.attention: flash needs a CUDA GPU; take sdpa")
    if asked == "sdpa" and "sdpa" not in architecture.attention:
        raise MachineError(
            "attention",
            "transformers has no sdpa attention for this model (it caps its scores, or has "
            "sinks); take model.attention: eager",
        )
    if asked != "auto":
        return asked, AS_SET
    if "sdpa" not in architecture.attention:
        return "eager", "transformers has no sdpa attention for this model"
    return "sdpa", "torch's own fused kernels, without another package"


def count_steps(recipe: Recipe, rows: RowStatistics) -> tuple[int, float, str]:
    """Optimizer steps, epochs, and the reason.

    `max_steps` counts the steps of the task's rows: replayed rows add their own, so that as many
    task rows are trained on with replay as without.
    """
    training = recipe.training
    if training.max_steps is not None:
        steps, reason = training.max_steps, "training.max_steps"
        if rows.replayed_rows:
            steps = math.ceil(steps * rows.rows / (rows.rows - rows.replayed_rows))
            reason += f": {training.max_steps} for the task's rows, the others for data.replay"
        return steps, steps * training.batch_size / rows.rows, reason
    steps = max(1, math.ceil(round(rows.rows * training.epochs) / training.batch_size))
    reason = f"{rows.in_words} × {training.epochs:g} epochs / {training.batch_size} per step"
    return steps, training.epochs, reason


def choose_eval_steps(recipe: Recipe, rows: RowStatistics, steps: int) -> Decided[int]:
    """Steps between two validations, so that they cost little."""
    asked = recipe.training.eval_steps
    if asked != "auto":
        return asked, AS_SET
    if not rows.validation_tokens:
        return math.ceil(steps / MOST_VALIDATIONS), "there are no validation rows"
    trained = steps * recipe.training.batch_size * rows.mean_tokens
    one = rows.validation_tokens * FORWARD_SHARE
    affordable = int(trained * VALIDATION_SHARE / one)
    count = min(max(affordable, 2), MOST_VALIDATIONS, steps)
    return (
        math.ceil(steps / count),
        f"{count} validations, so that they take about {count * one / trained:.0%} of the time",
    )


def choose_save_steps(recipe: Recipe, rows: RowStatistics, eval_steps: int) -> Decided[int]:
    """Steps between two checkpoints."""
    asked = recipe.training.save_steps
    if asked != "auto":
        return asked, AS_SET
    if not rows.validation_tokens:
        return eval_steps, f"nothing is validated; {SAVED_WHEN}"
    return eval_steps, f"with every validation, the best weights always; {SAVED_WHEN}"
