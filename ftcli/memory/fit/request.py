"""The request of `estimate-vram --fit`, and the changes to try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from ftcli.errors import ModelError
from ftcli.memory import Choices
from ftcli.memory.adapted import adapted
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import (
    FROZEN_MODES,
    Mode,
    Optimizer,
    Targets,
    why_no_checkpointing,
    why_no_embedding_offload,
    why_no_tiles,
)
from ftcli.memory.fit.search import CARD_TOKENS, Options, useful_micro_batches
from ftcli.memory.hardware import Hardware

T = TypeVar("T")

# From the method that learns most to the one that needs least.
METHODS: tuple[Mode, ...] = ("full", "lora", "qlora")
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "adamw-8bit", "paged-adamw-8bit")
# The least rank in the LoRA paper's tables that is more than a curiosity (Hu et al. 2021, 7.2).
LEAST_RANK = 4
# Lengths are multiples of this: numbers that people read, and that tensor cores like.
LENGTH_STEP = 64
# Shorter rows cannot have a prompt and its answer.
LEAST_LENGTH = 128


@dataclass(frozen=True)
class FitRequest:
    """A requested training, and its open choices."""

    architecture: Architecture
    choices: Choices
    """Open choices have their smallest value."""
    batch_rows: int
    """Rows of an optimizer step, which stay as they are."""
    open_micro_batch: bool = False
    open_checkpointing: bool = False
    open_offload: bool = True
    open_tiles: bool = True
    open_ends: bool = True
    alpha: float | None = None
    """LoRA's alpha of the recipe: it is lowered with the rank."""
    rslora: bool = False
    """The update is scaled by alpha / √rank."""
    share_longer: Callable[[int], float] | None = None
    """Share of the rows that are longer than so many tokens; None where no rows are known."""

    @property
    def open_choices(self) -> tuple[str, ...]:
        """In words, what is left to the plan."""
        names = {
            "micro-batch": self.open_micro_batch,
            "gradient checkpointing": self.open_checkpointing,
        }
        return tuple(name for name, is_open in names.items() if is_open)


def require_mode(mode: Mode, architecture: Architecture) -> None:
    """Raise ModelError where the method cannot train this architecture."""
    name = architecture.name or architecture.model_type
    if mode in ("lora", "qlora", "bottleneck") and not architecture.linear_parameters:
        raise ModelError(
            "method_refused",
            f"{name} has no linear layers that an adapter could follow; take method.mode: full",
        )
    if mode == "prefix-tuning" and any(not kind.attention for kind in architecture.kinds):
        own = "sdpa" not in architecture.attention
        why = (
            "computes attention in its own way, in which ftcli cannot count a prefix"
            if own
            else "has layers without keys and values, which a prefix needs in every layer"
        )
        raise ModelError("method_refused", f"{name} {why}; take method.mode: lora")


def options_of(asked: FitRequest, hardware: Hardware) -> Options:
    """The request first, then every change that `ftcli train` supports on this GPU."""
    choices = asked.choices
    frozen, computes_fp32 = choices.mode in FROZEN_MODES, choices.precision == "fp32"
    longest = (choices.seq_len - 1) // LENGTH_STEP * LENGTH_STEP
    ranks = [choices.rank]
    if not frozen and not choices.rank_pattern:  # one alpha goes with all ranks
        while ranks[-1] // 2 >= LEAST_RANK:
            ranks.append(ranks[-1] // 2)
    modes = _from(METHODS, choices.mode)
    if computes_fp32 and choices.mode != "qlora":
        # QLoRA computes in 16 bits (ftcli.training.estimate.flags), and so does any 4-bit base.
        modes = tuple(mode for mode in modes if mode != "qlora")
    quantisable = frozen and not computes_fp32 and not choices.four_bit_base
    # Not flash: its package may be missing, and it saves nothing that sdpa does not.
    sdpa = choices.attention == "eager" and "sdpa" in asked.architecture.attention
    checkpointing: tuple[bool, ...] = (False, True)
    if why_no_checkpointing(choices.mode, asked.architecture) is not None:
        checkpointing = (False,)
    elif (
        choices.offloading
        or choices.tiling
        or (choices.gradient_checkpointing and not asked.open_checkpointing)
    ):
        checkpointing = (True,)
    on_gpu = hardware.kind == "cuda" and choices.device == "cuda"
    can_offload = True in checkpointing and on_gpu
    offload = open_or(choices.activation_offload, asked.open_offload and can_offload)
    can_tile = why_no_tiles(choices.mode, asked.architecture) is None and True in checkpointing
    tiles = open_or(choices.tiled_mlp, asked.open_tiles and can_tile)
    can_leave = why_no_embedding_offload(choices, asked.architecture) is None
    ends = open_or(choices.embedding_offload, asked.open_ends and can_leave and on_gpu)
    rows = useful_micro_batches(asked.batch_rows, hardware)
    if not asked.open_micro_batch:
        rows = (choices.micro_batch, *(fewer for fewer in rows if fewer < choices.micro_batch))
    return Options(
        seq_len=(choices.seq_len, *range(longest, LEAST_LENGTH - 1, -LENGTH_STEP)),
        rank=tuple(ranks),
        mode=modes,
        four_bit_base=(False, True) if quantisable else (choices.four_bit_base,),
        target_modules=_targets(asked.architecture, choices),
        optimizer=_from(OPTIMIZERS, choices.optimizer),
        attention=("eager", "sdpa") if sdpa else (choices.attention,),
        embedding_offload=ends,
        activation_offload=offload,
        tiled_mlp=tiles,
        gradient_checkpointing=checkpointing,
        micro_batch=rows,
        batch_rows=asked.batch_rows,
        most_tokens=CARD_TOKENS if asked.open_micro_batch else None,
    )


def sparing(asked: FitRequest, hardware: Hardware) -> Choices:
    """What is asked, with what a plan takes by itself where nothing else fits."""
    options = options_of(asked, hardware)
    return replace(
        asked.choices,
        embedding_offload=options.embedding_offload[-1],
        activation_offload=options.activation_offload[-1],
        tiled_mlp=options.tiled_mlp[-1],
    )


def open_or(value: bool, is_open: bool) -> tuple[bool, ...]:
    """Both values of what is open and not taken, else its own."""
    return (False, True) if is_open and not value else (value,)


def _targets(architecture: Architecture, choices: Choices) -> tuple[Targets, ...]:
    """As asked; attention alone; queries and values alone: each a part of the one before.

    Modules with a rank of their own stay: a rank for what is not adapted is an error.
    """
    if choices.mode in FROZEN_MODES or choices.rank_pattern:
        return (choices.target_modules,)
    linear = architecture.kinds[0].linear
    block = linear[0].name.rpartition(".")[0]
    attention = [each.name for each in linear if each.name.rpartition(".")[0] == block]
    *queries, output = (name.rpartition(".")[2] for name in attention)
    tried: list[Targets] = [choices.target_modules]
    reached = set(adapted(architecture, choices).last_names)
    for fewer in ((*queries, output), (queries[0], queries[-1]) if len(queries) > 1 else queries):
        if set(fewer) < reached:
            tried.append(tuple(fewer))
            reached = set(fewer)
    return tuple(tried)


def _from(ordered: tuple[T, ...], asked: T) -> tuple[T, ...]:
    """`asked` and what comes after it; alone where it is not among them."""
    return ordered[ordered.index(asked) :] if asked in ordered else (asked,)
