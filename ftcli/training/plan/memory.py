"""Optimizer, micro-batch and checkpointing: what memory decides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, assert_never

from ftcli.config.recipe import Adapter, Full, Lora, LoraKeys, Method, Prefix, Prompt, Qlora, Recipe
from ftcli.errors import MachineError, UsageError
from ftcli.memory import Choices, Estimate
from ftcli.memory.choices import Attention, Optimizer, Precision
from ftcli.memory.fit.bound import estimate_on, fits, needed_bytes
from ftcli.memory.fit.search import (
    CARD_TOKENS,
    CPU_TOKENS,
    FULL_CPU_TOKENS,
    Options,
    cheapest,
    leanest,
    useful_micro_batches,
)
from ftcli.memory.hardware import Hardware
from ftcli.memory.shapes import Shape
from ftcli.memory.static import kept_dequantised_bytes
from ftcli.training.plan.choice import Choice, Profile
from ftcli.training.plan.speed import choose_dequantised, may_keep_dequantised, why_not_fused

# transformers 5.24, modeling_layers.py: it takes the cache from a layer that is computed again.
NO_CHECKPOINTING = (
    "keys and values of a prefix stand in the cache, which a layer that is computed again would "
    "fill twice"
)

# A prefix is computed once in each micro-batch: of so many times its length, a quarter is prefix.
PREFIXES = 4


@dataclass(frozen=True)
class Fit:
    """What fits, and what it takes."""

    optimizer: Choice[Optimizer]
    micro_batch: Choice[int]
    checkpointing: Choice[bool]
    dequantised: Choice[bool] | None
    choices: Choices
    """What the estimate is of."""
    estimate: Estimate


def vram_method(method: Method) -> dict[str, Any]:
    """The method in the words of `vram.Choices`."""
    match method:
        case Full():
            return {"mode": "full"}
        case Lora():
            return _lora_words(method)
        case Qlora():
            return _lora_words(method) | {"double_quantization": method.double_quantization}
        case Adapter():
            words = {"bottleneck": method.bottleneck, "placement": method.placement}
        case Prefix():
            words = {"virtual_tokens": method.virtual_tokens, "projection": method.projection}
        case Prompt():
            words = {"virtual_tokens": method.virtual_tokens}
        case _:
            assert_never(method)
    return {"mode": method.mode, "four_bit_base": method.quantization == "nf4", **words}


def _lora_words(method: LoraKeys) -> dict[str, Any]:
    targets = method.target_modules
    return {
        "mode": "qlora" if isinstance(method, Qlora) else "lora",
        "rank": method.rank,
        "dropout": method.dropout,
        "targets": targets if isinstance(targets, str) else tuple(targets),
        "layers": None if method.layers is None else tuple(sorted(set(method.layers))),
        "rank_pattern": tuple(method.rank_pattern.items()),  # the first key that matches counts
        "dora": method.dora,
        "modules_to_save": tuple(method.modules_to_save),
    }


def vram_choices(
    recipe: Recipe,
    profile: Profile,
    precision: Precision,
    attention: Attention,
    hardware: Hardware | None = None,
) -> Choices:
    """What the recipe and the data say, in the words of `vram.Choices`.

    What is `auto` stands at its smallest; without hardware a card is meant. Raises as
    `least_checkpointing`.
    """
    training = recipe.training
    micro_batch = 1 if training.micro_batch_size == "auto" else training.micro_batch_size
    return Choices(
        **vram_method(recipe.method),
        hold=training.hold_strength > 0,
        precision=precision,
        weights_dtype=recipe.model.dtype,
        optimizer="adamw" if training.optimizer == "auto" else training.optimizer,
        attention=attention,
        seq_len=profile.longest_tokens,
        micro_batch=micro_batch,
        gradient_accumulation=training.batch_size // micro_batch,
        gradient_checkpointing=least_checkpointing(recipe),
        labelled_share=profile.labelled_share,
        device="cuda" if hardware is None or hardware.kind == "cuda" else "cpu",
    )


def least_checkpointing(recipe: Recipe) -> bool:
    """As asked, or what needs least; raises UsageError (`gradient_checkpointing`)."""
    asked = recipe.training.gradient_checkpointing
    if not isinstance(recipe.method, Prefix):
        return True if asked == "auto" else asked
    if asked is True:
        raise UsageError(
            "gradient_checkpointing",
            f"training.gradient_checkpointing: {NO_CHECKPOINTING}; leave it to auto",
        )
    return False


def fit_memory(
    recipe: Recipe, shape: Shape, profile: Profile, hardware: Hardware, base: Choices
) -> Fit:
    """The cheapest values of what the recipe leaves open; raises MachineError."""
    require_optimizer(recipe, hardware)
    options = _options(recipe, profile, hardware, base)

    def has_room(way: Choices) -> bool:
        return fits(
            estimate_on(shape, _by_tokens(recipe, profile, hardware, way), hardware), hardware
        )

    found = cheapest(base, options, has_room)
    if found is None:
        least = leanest(base, options)
        raise _too_large(recipe, profile, hardware, least, estimate_on(shape, least, hardware))
    found = _by_tokens(recipe, profile, hardware, found)
    if may_keep_dequantised(recipe, hardware, found):
        fused = found.has_lora and why_not_fused(recipe, hardware, found) is None
        kept = replace(found, keeps_dequantised=True, fused_lora=fused)
        found = kept if fits(estimate_on(shape, kept, hardware), hardware) else found
    return Fit(
        _optimizer_choice(recipe, hardware, found),
        _micro_batch_choice(recipe, found, hardware),
        _checkpointing_choice(recipe, found.gradient_checkpointing),
        choose_dequantised(recipe, hardware, found, kept_dequantised_bytes(shape, found)),
        found,
        estimate_on(shape, found, hardware),
    )


def _options(recipe: Recipe, profile: Profile, hardware: Hardware, base: Choices) -> Options:
    """What the recipe leaves to the plan: of all else there is one value."""
    training = recipe.training
    asked_rows = training.micro_batch_size
    open_checkpointing = training.gradient_checkpointing == "auto" and base.mode != "prefix"
    paging = training.optimizer == "auto" and base.mode == "full" and hardware.kind == "cuda"
    # Packed rows, which may have tokens in common, are counted in `_rows_at_once`.
    bounded = hardware.kind == "cuda" and asked_rows == "auto" and not base.packed_rows
    return Options(
        seq_len=(base.seq_len,),
        rank=(base.rank,),
        mode=(base.mode,),
        four_bit_base=(base.four_bit_base,),
        targets=(base.targets,),
        optimizer=("adamw", "paged-adamw-8bit") if paging else (base.optimizer,),
        attention=(base.attention,),
        gradient_checkpointing=(
            (False, True) if open_checkpointing else (base.gradient_checkpointing,)
        ),
        micro_batch=_rows_at_once(recipe, profile, hardware, base),
        batch_rows=training.batch_size,
        most_tokens=CARD_TOKENS if bounded else None,
    )


def _rows_at_once(
    recipe: Recipe, profile: Profile, hardware: Hardware, base: Choices
) -> tuple[int, ...]:
    """Rows of a micro-batch, the most first; of packed ones, as many of the longest as its tokens
    come to."""
    asked = recipe.training.micro_batch_size
    tokens = not isinstance(recipe.training.packing, bool | str)
    if asked != "auto" and not (base.packed_rows and tokens):
        return (asked,)
    if not base.packed_rows:
        return useful_micro_batches(recipe.training.batch_size, hardware)
    most = math.ceil(profile.packed_rows(_wanted_tokens(recipe, profile, hardware)))
    most = max(1, min(most, recipe.training.batch_size))
    if not tokens:
        return tuple(range(most, 0, -1))
    return (most,) if asked == "auto" else (min(asked, most),)


def _wanted_tokens(recipe: Recipe, profile: Profile, hardware: Hardware) -> int:
    """Tokens of a micro-batch of packed rows, where memory has room."""
    asked = recipe.training.packing
    if not isinstance(asked, bool | str):
        return asked
    on_cpu = FULL_CPU_TOKENS if isinstance(recipe.method, Full) else CPU_TOKENS
    enough = CARD_TOKENS if hardware.kind == "cuda" else on_cpu
    return max(enough, PREFIXES * profile.shared_tokens)


def _by_tokens(recipe: Recipe, profile: Profile, hardware: Hardware, found: Choices) -> Choices:
    """What fits for so many of the longest rows, as one sequence of as many tokens as are wanted:
    of as many as a recipe's own micro-batch can have, where it says nothing of tokens."""
    if not found.packed_rows:
        return found
    training = recipe.training
    by_rows = training.micro_batch_size != "auto" and isinstance(training.packing, bool | str)
    most = profile.packed_tokens(found.micro_batch)
    wanted = most if by_rows else _wanted_tokens(recipe, profile, hardware)
    tokens = max(found.seq_len, min(wanted, most))
    return replace(
        found,
        micro_batch=1,
        seq_len=tokens,
        longest_row=found.seq_len,
        labelled_share=profile.packed_share(tokens),
        gradient_accumulation=math.ceil(training.batch_size / profile.packed_rows(tokens)),
    )


def require_optimizer(recipe: Recipe, hardware: Hardware) -> None:
    """Raise MachineError where the optimizer that is asked for does not run here."""
    asked = recipe.training.optimizer
    if hardware.kind != "cuda" and asked in ("adamw-8bit", "paged-adamw-8bit"):
        raise MachineError(
            "optimizer", f"training.optimizer: {asked} needs a CUDA card; take adamw"
        )


def _too_large(
    recipe: Recipe, profile: Profile, hardware: Hardware, least: Choices, found: Estimate
) -> MachineError:
    upper = "up to " if hardware.kind == "cuda" else ""
    needed = f"{upper}{needed_bytes(found, hardware) / 1e9:.1f} GB"
    rows = "one row" if least.micro_batch == 1 else f"{least.micro_batch} rows"
    verb = "needs" if least.micro_batch == 1 else "need"
    return MachineError(
        "memory",
        f"{rows} of {profile.longest_tokens} tokens {verb} {needed}, and "
        f"{hardware.name} has {hardware.free_bytes / 1e9:.1f} GB free; "
        f"{_cheaper(recipe)}, lower data.max_length, or take a smaller model",
    )


def _cheaper(recipe: Recipe) -> str:
    """The change that costs least: first what the recipe forbids the plan to choose."""
    method = recipe.method
    if recipe.training.gradient_checkpointing is False and not isinstance(method, Prefix):
        return "leave training.gradient_checkpointing to auto"
    if recipe.training.micro_batch_size not in ("auto", 1):
        return "leave training.micro_batch_size to auto"
    match method:
        case Full():
            return "take method.mode: lora"
        case Lora():
            return "take method.mode: qlora"
        case Qlora():
            return "lower method.rank"
        case Adapter() | Prefix() | Prompt():
            quantised = method.quantization == "nf4"
            return "take method.mode: qlora" if quantised else "take method.quantization: nf4"
        case _:
            assert_never(method)


def _optimizer_choice(recipe: Recipe, hardware: Hardware, found: Choices) -> Choice[Optimizer]:
    if recipe.training.optimizer != "auto":
        return Choice(found.optimizer, "set in the recipe")
    if found.optimizer != "adamw":
        return Choice(found.optimizer, "fp32 states do not fit on this card")
    if found.mode != "full":
        return Choice("adamw", "few trained weights")
    return Choice("adamw", "its fp32 states fit" if hardware.kind == "cuda" else "exact states")


def _micro_batch_choice(recipe: Recipe, found: Choices, hardware: Hardware) -> Choice[int]:
    micro_batch = found.micro_batch
    if recipe.training.micro_batch_size != "auto":
        return Choice(recipe.training.micro_batch_size, "set in the recipe")
    if found.packed_rows:
        return Choice(recipe.training.batch_size, "packed rows are divided by their tokens")
    if hardware.kind == "cpu":
        return Choice(micro_batch, "keeps the cores busy; more rows would only add padding")
    return Choice(micro_batch, "the largest that fits and divides the batch")


def _checkpointing_choice(recipe: Recipe, checkpointing: bool) -> Choice[bool]:
    if isinstance(recipe.method, Prefix):
        return Choice(False, NO_CHECKPOINTING)
    if recipe.training.gradient_checkpointing != "auto":
        return Choice(checkpointing, "set in the recipe")
    if checkpointing:
        return Choice(True, "activations do not fit without it; costs about a third more time")
    return Choice(False, "activations fit; computing them again would cost a third more time")
