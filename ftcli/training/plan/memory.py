"""Decisions by memory: optimizer, micro-batch, gradient checkpointing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import assert_never

from ftcli.config.recipe import Bottleneck, Full, Lora, PrefixTuning, PromptTuning, Qlora, Recipe
from ftcli.errors import MachineError
from ftcli.memory import Choices, Estimate
from ftcli.memory.activations.layers import TILE_TOKENS, offloaded_bytes
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import (
    Optimizer,
    why_no_checkpointing,
    why_no_embedding_offload,
    why_no_tiles,
)
from ftcli.memory.fit.request import open_or
from ftcli.memory.fit.search import (
    CARD_TOKENS,
    CPU_TOKENS,
    FULL_CPU_TOKENS,
    Options,
    cheapest,
    estimate_on,
    fits,
    needed_bytes,
    smallest,
    useful_micro_batches,
)
from ftcli.memory.hardware import Hardware
from ftcli.memory.static import ends_bytes
from ftcli.shell import gib, shown_size
from ftcli.training.plan.optimizations import may_cache_dequantised
from ftcli.training.plan.plan import AS_SET, Decided, RowStatistics, packed

# Of free RAM, what offloaded hidden states may take: they are in pinned memory.
OFFLOAD_SHARE = 0.7
# Tokens of a micro-batch per token of a shared prefix, which each micro-batch computes once.
PREFIXES = 4


def fit_memory(
    recipe: Recipe,
    architecture: Architecture,
    rows: RowStatistics,
    hardware: Hardware,
    base: Choices,
) -> tuple[Choices, Estimate]:
    """The cheapest values of everything that is `auto`; raises MachineError."""
    options = _options(recipe, architecture, rows, hardware, base)

    def estimated(candidate: Choices) -> Estimate:
        packed = _by_tokens(recipe, rows, hardware, candidate)
        return estimate_on(architecture, packed, hardware)

    def on_gpu(candidate: Choices) -> bool:
        return fits(estimated(candidate), hardware)

    found = cheapest(
        base, options, lambda each: on_gpu(each) and _has_ram(estimated(each), hardware)
    )
    if found is None:
        if (with_ram := cheapest(base, options, on_gpu)) is not None:
            raise _without_ram(estimated(with_ram), hardware)
        least = smallest(base, options)
        raise _too_large(recipe, rows, hardware, least, estimate_on(architecture, least, hardware))
    found = _by_tokens(recipe, rows, hardware, found)
    if may_cache_dequantised(recipe, hardware, found):
        kept = replace(found, keeps_dequantised=True)
        found = kept if fits(estimate_on(architecture, kept, hardware), hardware) else found
    return found, estimate_on(architecture, found, hardware)


def _has_ram(found: Estimate, hardware: Hardware) -> bool:
    free = hardware.ram_bytes
    return free is None or found.moments["ram"] <= OFFLOAD_SHARE * free


def _options(
    recipe: Recipe,
    architecture: Architecture,
    rows: RowStatistics,
    hardware: Hardware,
    base: Choices,
) -> Options:
    """Candidates for everything that is `auto`; one value for everything else."""
    training = recipe.training
    asked_rows = training.micro_batch_size
    open_checkpointing = training.gradient_checkpointing == "auto" and base.gradient_checkpointing
    needs_it = training.activation_offload is True or training.tiled_mlp is True
    open_checkpointing &= not needs_it
    can = base.gradient_checkpointing and base.checkpointing
    can_tile = can and why_no_tiles(base.mode, architecture) is None
    offload, tiles = training.activation_offload, training.tiled_mlp
    eight_bit = training.optimizer == "auto" and base.mode == "full" and hardware.kind == "cuda"
    # Windows' driver does not page managed memory (bitsandbytes, issue 453).
    other: Optimizer = "adamw-8bit" if hardware.wsl else "paged-adamw-8bit"
    # Packed rows, which may share a prefix, are counted in `_micro_batch`.
    bounded = hardware.kind == "cuda" and asked_rows == "auto" and not base.packed_rows
    return Options(
        seq_len=(base.seq_len,),
        rank=(base.rank,),
        mode=(base.mode,),
        four_bit_base=(base.four_bit_base,),
        target_modules=(base.target_modules,),
        optimizer=("adamw", other) if eight_bit else (base.optimizer,),
        attention=(base.attention,),
        embedding_offload=open_or(
            training.embedding_offload is True,
            training.embedding_offload == "auto"
            and hardware.kind == "cuda"
            and why_no_embedding_offload(base, architecture) is None,
        ),
        activation_offload=open_or(
            offload is True, offload == "auto" and can and hardware.kind == "cuda"
        ),
        tiled_mlp=open_or(tiles is True, tiles == "auto" and can_tile),
        gradient_checkpointing=(
            (False, True) if open_checkpointing else (base.gradient_checkpointing,)
        ),
        micro_batch=_micro_batch(recipe, rows, hardware, base),
        batch_rows=training.batch_size,
        most_tokens=CARD_TOKENS if bounded else None,
    )


def _micro_batch(
    recipe: Recipe, rows: RowStatistics, hardware: Hardware, base: Choices
) -> tuple[int, ...]:
    """Rows of a micro-batch, the largest first; packed: as many of the longest rows as fit in its
    tokens."""
    asked = recipe.training.micro_batch_size
    tokens = not isinstance(recipe.training.packing, bool | str)
    if asked != "auto" and not (base.packed_rows and tokens):
        return (asked,)
    if not base.packed_rows:
        return useful_micro_batches(recipe.training.batch_size, hardware)
    most = math.ceil(rows.packed_rows(_wanted_tokens(recipe, rows, hardware)))
    most = max(1, min(most, recipe.training.batch_size))
    if not tokens:
        return tuple(range(most, 0, -1))
    return (most,) if asked == "auto" else (min(asked, most),)


def _wanted_tokens(recipe: Recipe, rows: RowStatistics, hardware: Hardware) -> int:
    """Tokens of a micro-batch of packed rows, if memory has space for them."""
    asked = recipe.training.packing
    if not isinstance(asked, bool | str):
        return asked
    on_cpu = FULL_CPU_TOKENS if isinstance(recipe.method, Full) else CPU_TOKENS
    enough = CARD_TOKENS if hardware.kind == "cuda" else on_cpu
    return max(enough, PREFIXES * rows.shared_tokens)


def _by_tokens(recipe: Recipe, rows: RowStatistics, hardware: Hardware, found: Choices) -> Choices:
    """Choices that fit for the longest rows, packed into one sequence of the wanted tokens.

    A micro_batch_size in the recipe sets the tokens unless training.packing does.
    """
    if not found.packed_rows:
        return found
    training = recipe.training
    by_rows = training.micro_batch_size != "auto" and isinstance(training.packing, bool | str)
    most = rows.packed_tokens(found.micro_batch)
    wanted = most if by_rows else _wanted_tokens(recipe, rows, hardware)
    tokens = max(found.seq_len, min(wanted, most))
    return packed(found, rows, tokens, training.batch_size)


def require_gpu(recipe: Recipe, hardware: Hardware) -> None:
    """Raise MachineError if the recipe's optimizer or an offload needs a GPU."""
    asked = recipe.training.optimizer
    for name in ("activation_offload", "embedding_offload"):
        if hardware.kind != "cuda" and getattr(recipe.training, name) is True:
            raise MachineError(name, f"training.{name}: true needs a CUDA GPU; leave it to auto")
    if hardware.kind != "cuda" and asked in ("adamw-8bit", "paged-adamw-8bit"):
        raise MachineError("optimizer", f"training.optimizer: {asked} needs a CUDA GPU; take adamw")


def _without_ram(found: Estimate, hardware: Hardware) -> MachineError:
    in_ram, free = gib(found.moments["ram"]), gib(hardware.ram_bytes or 0)
    return MachineError(
        "memory",
        f"what {hardware.name} has no room for takes {in_ram} of RAM, and {free} are free, of "
        f"which {OFFLOAD_SHARE:.0%} may be taken; lower data.max_length, or free RAM",
    )


def _too_large(
    recipe: Recipe, rows: RowStatistics, hardware: Hardware, least: Choices, found: Estimate
) -> MachineError:
    upper = "up to " if hardware.kind == "cuda" else ""
    needed = f"{upper}{gib(needed_bytes(found, hardware))}"
    count = "one row" if least.micro_batch == 1 else f"{least.micro_batch} rows"
    verb = "needs" if least.micro_batch == 1 else "need"
    return MachineError(
        "memory",
        f"{count} of {rows.longest_tokens} tokens {verb} {needed}, and "
        f"{hardware.name} has {gib(hardware.free_bytes)} free; "
        f"{_cheaper(recipe)}, lower data.max_length, or take a smaller model",
    )


def _cheaper(recipe: Recipe) -> str:
    """The change that costs least: first a setting that keeps the plan from choosing."""
    method = recipe.method
    if recipe.training.gradient_checkpointing is False and not isinstance(method, PrefixTuning):
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
        case Bottleneck() | PrefixTuning() | PromptTuning():
            quantised = method.quantization == "nf4"
            return "take method.mode: qlora" if quantised else "take method.quantization: nf4"
        case _:
            assert_never(method)


def why_optimizer(recipe: Recipe, hardware: Hardware, found: Choices) -> str:
    if recipe.training.optimizer != "auto":
        return AS_SET
    if found.optimizer != "adamw":
        return "fp32 states do not fit on this GPU"
    if found.mode != "full":
        return "few trained weights"
    return "its fp32 states fit" if hardware.kind == "cuda" else "exact states"


def choose_micro_batch(recipe: Recipe, found: Choices, hardware: Hardware) -> Decided[int]:
    """Rows of a micro-batch; the maximum of packed rows."""
    if recipe.training.micro_batch_size != "auto":
        return recipe.training.micro_batch_size, AS_SET
    if found.packed_rows:
        return recipe.training.batch_size, "packed rows are split by their tokens"
    if hardware.kind == "cpu":
        return found.micro_batch, "enough for the cores; more rows would only add padding"
    return found.micro_batch, "the largest that fits and divides the batch"


def whys_of_checkpointing(
    recipe: Recipe, architecture: Architecture, found: Choices
) -> dict[str, str]:
    whys = {"training.gradient_checkpointing": _why_checkpointing(recipe, architecture, found)}
    if found.gradient_checkpointing and found.device == "cuda":
        whys["training.activation_offload"] = _why_offload(recipe, architecture, found)
    if found.embedding_offload or recipe.training.embedding_offload is False:
        whys["training.embedding_offload"] = _why_ends(recipe, architecture, found)
    if found.gradient_checkpointing:
        whys["training.tiled_mlp"] = _why_tiles(recipe, architecture, found)
    return whys


def _why_checkpointing(recipe: Recipe, architecture: Architecture, found: Choices) -> str:
    if (why := why_no_checkpointing(found.mode, architecture)) is not None:
        return why
    if recipe.training.gradient_checkpointing != "auto":
        return AS_SET
    training = recipe.training
    for name in ("activation_offload", "tiled_mlp"):
        if getattr(training, name) is True:
            return f"training.{name} needs it; takes about a third more time"
    if found.gradient_checkpointing:
        return "activations do not fit without it; takes about a third more time"
    return "activations fit; computing them again would take a third more time"


def _why_tiles(recipe: Recipe, architecture: Architecture, found: Choices) -> str:
    asked = recipe.training.tiled_mlp
    if (why := why_no_tiles(found.mode, architecture)) is not None:
        return why
    if not found.tiling:
        return AS_SET if asked is False else "activations of a whole MLP fit"
    why = AS_SET if asked is True else "activations of a whole MLP do not fit"
    tiles = math.ceil(found.tokens / TILE_TOKENS)
    of = "1 tile" if tiles == 1 else f"{tiles} tiles"
    return f"{why}; {of} of up to {TILE_TOKENS:,} tokens"


def _why_ends(recipe: Recipe, architecture: Architecture, found: Choices) -> str:
    if not found.embedding_offload:
        return AS_SET
    why = AS_SET if recipe.training.embedding_offload is True else "nothing else fits"
    return f"{why}; {shown_size(ends_bytes(architecture, found))} less on the GPU"


def _why_offload(recipe: Recipe, architecture: Architecture, found: Choices) -> str:
    asked = recipe.training.activation_offload
    if not found.offloading:
        return AS_SET if asked is False else "hidden states between layers fit"
    size = offloaded_bytes(architecture, found)
    why = AS_SET if asked is True else "they do not fit"
    return f"{why}; {shown_size(size)} go to RAM and back in each micro-batch"
