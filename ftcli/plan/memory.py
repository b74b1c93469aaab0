"""Optimizer, micro-batch and checkpointing: what memory decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, assert_never

from ftcli.errors import MachineError
from ftcli.hardware import Hardware, context_bytes
from ftcli.plan.choice import Choice, Profile
from ftcli.recipe import Full, Lora, Method, Qlora, Recipe
from ftcli.shapes import Shape
from ftcli.vram import Choices, Estimate, estimate
from ftcli.vram.choices import Attention, Optimizer, Precision, WeightsDtype

# On a CPU four rows already keep the matrix units busy; more rows only add padding.
CPU_MICRO_BATCH = 4
# On a card beyond this many tokens at once the products are as fast as they get.
CARD_TOKENS = 16_384
# Share of free memory that a plan may fill: the allocator's fragments take the rest.
MEMORY_SHARE = 0.92


@dataclass(frozen=True)
class Fit:
    """What fits, and what it takes."""

    micro_batch: Choice[int]
    checkpointing: Choice[bool]
    estimate: Estimate


def vram_method(method: Method) -> dict[str, Any]:
    """The method in the words of `vram.Choices`."""
    match method:
        case Full():
            return {"mode": "full"}
        case Lora() | Qlora():
            targets = method.target_modules
            words = {
                "mode": method.mode,
                "rank": method.rank,
                "dropout": method.dropout,
                "targets": targets if isinstance(targets, str) else tuple(targets),
            }
            if isinstance(method, Qlora):
                words["double_quantization"] = method.double_quantization
            return words
        case _:
            assert_never(method)


def vram_choices(
    recipe: Recipe,
    profile: Profile,
    precision: Precision,
    weights: WeightsDtype,
    attention: Attention,
) -> Choices:
    """What the recipe and the data say, in the words of `vram.Choices`."""
    training = recipe.training
    micro_batch = 1 if training.micro_batch_size == "auto" else training.micro_batch_size
    checkpointing = training.gradient_checkpointing
    return Choices(
        **vram_method(recipe.method),
        precision=precision,
        weights_dtype=weights,
        attention=attention,
        seq_len=profile.longest_tokens,
        micro_batch=micro_batch,
        gradient_accumulation=training.batch_size // micro_batch,
        gradient_checkpointing=True if checkpointing == "auto" else checkpointing,
        labelled_share=profile.labelled_share,
    )


def choose_optimizer(
    recipe: Recipe, hardware: Hardware, shape: Shape, base: Choices
) -> Choice[Optimizer]:
    """fp32 AdamW states where they fit; raises MachineError."""
    asked = recipe.training.optimizer
    if asked != "auto":
        if hardware.kind != "cuda" and asked in ("adamw-8bit", "paged-adamw-8bit"):
            raise MachineError(
                "optimizer", f"training.optimizer: {asked} needs a CUDA card; take adamw"
            )
        return Choice(asked, "set in the recipe")
    if hardware.kind != "cuda" or not isinstance(recipe.method, Full):
        return Choice("adamw", "few trained weights" if base.mode != "full" else "exact states")
    if needed_bytes(estimate(shape, base), hardware) <= _budget(hardware):
        return Choice("adamw", "its fp32 states fit")
    return Choice("paged-adamw-8bit", "fp32 states do not fit on this card")


def fit_memory(
    recipe: Recipe, shape: Shape, profile: Profile, hardware: Hardware, base: Choices
) -> Fit:
    """The largest useful micro-batch that fits, without checkpointing where there is room."""
    training, budget = recipe.training, _budget(hardware)
    asked = training.gradient_checkpointing
    for checkpointing in [False, True] if asked == "auto" else [asked]:
        for micro_batch in _micro_batches(recipe, profile, hardware):
            choices = replace(
                base,
                micro_batch=micro_batch,
                gradient_accumulation=training.batch_size // micro_batch,
                gradient_checkpointing=checkpointing,
            )
            found = estimate(shape, choices)
            if needed_bytes(found, hardware) <= budget:
                return Fit(
                    _micro_batch_choice(recipe, micro_batch, hardware),
                    _checkpointing_choice(asked, checkpointing),
                    found,
                )
    needed = needed_bytes(found, hardware) / 1e9
    rows = "one row" if micro_batch == 1 else f"{micro_batch} rows"
    verb = "needs" if micro_batch == 1 else "need"
    raise MachineError(
        "memory",
        f"{rows} of {profile.longest_tokens} tokens {verb} {needed:.1f} GB, and "
        f"{hardware.name} has {hardware.free_bytes / 1e9:.1f} GB free; "
        f"{_cheaper(recipe)}, lower data.max_length, or take a smaller model",
    )


def _budget(hardware: Hardware) -> int:
    return int(hardware.free_bytes * MEMORY_SHARE)


def needed_bytes(found: Estimate, hardware: Hardware) -> int:
    """What a step takes of the memory that `hardware` calls free."""
    if hardware.kind != "cuda":
        return found.peak_bytes
    # The context of this very process is not part of what CUDA calls free.
    return found.device_bytes - context_bytes(None)


def _cheaper(recipe: Recipe) -> str:
    """The change that costs least: first what the recipe forbids the plan to choose."""
    if recipe.training.gradient_checkpointing is False:
        return "leave training.gradient_checkpointing to auto"
    if recipe.training.micro_batch_size not in ("auto", 1):
        return "leave training.micro_batch_size to auto"
    method = recipe.method
    match method:
        case Full():
            return "take method.mode: lora"
        case Lora():
            return "take method.mode: qlora"
        case Qlora():
            return "lower method.rank"
        case _:
            assert_never(method)


def _micro_batches(recipe: Recipe, profile: Profile, hardware: Hardware) -> list[int]:
    """Divisors of the batch size worth trying, the largest first."""
    training = recipe.training
    if training.micro_batch_size != "auto":
        return [training.micro_batch_size]
    most = CPU_MICRO_BATCH
    if hardware.kind == "cuda":
        most = max(1, CARD_TOKENS // profile.longest_tokens)
    size = training.batch_size
    return [n for n in range(min(size, most), 0, -1) if size % n == 0]


def _micro_batch_choice(recipe: Recipe, micro_batch: int, hardware: Hardware) -> Choice[int]:
    if recipe.training.micro_batch_size != "auto":
        return Choice(micro_batch, "set in the recipe")
    if hardware.kind == "cpu":
        return Choice(micro_batch, "keeps the cores busy; more rows would only add padding")
    return Choice(micro_batch, "the largest that fits and divides the batch")


def _checkpointing_choice(asked: bool | str, checkpointing: bool) -> Choice[bool]:
    if asked != "auto":
        return Choice(checkpointing, "set in the recipe")
    if checkpointing:
        return Choice(True, "activations do not fit without it; costs about a third more time")
    return Choice(False, "activations fit; computing them again would cost a third more time")
