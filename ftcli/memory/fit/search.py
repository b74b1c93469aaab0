"""The cheapest candidate that fits: one search for `train` and for `estimate-vram --fit`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from ftcli.memory import Choices, Estimate, estimate
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import Attention, Mode, Optimizer, Targets
from ftcli.memory.hardware import Hardware, context_bytes

# Share of a CPU's free memory that a plan may fill: no measured runs give it an interval.
CPU_MEMORY_SHARE = 0.92


def estimate_on(
    architecture: Architecture, choices: Choices, hardware: Hardware | None
) -> Estimate:
    """The estimate with the CUDA context of this GPU; without one, with the largest known."""
    return estimate(architecture, choices, hardware.compute_capability if hardware else None)


def fits(found: Estimate, hardware: Hardware) -> bool:
    """On a GPU by the upper bound of the estimate."""
    share = 1 if hardware.kind == "cuda" else CPU_MEMORY_SHARE
    return needed_bytes(found, hardware) <= share * hardware.free_bytes


def needed_bytes(found: Estimate, hardware: Hardware) -> int:
    """The most that a step takes of the memory that `hardware` calls free."""
    if hardware.kind != "cuda":
        return found.peak_bytes
    # The context of this very process is not part of what CUDA calls free.
    return found.high_bytes - context_bytes(hardware.compute_capability)


Fits = Callable[[Choices], bool]

# On a CPU four rows already keep the matrix units busy; more rows only add padding.
CPU_MICRO_BATCH = 4
# Packed rows keep them busy with so many tokens; with half as many a step of an adapter takes 9%
# more, and one of full fine-tuning, whose states have no memory to spare, 6%.
CPU_TOKENS = 2048
FULL_CPU_TOKENS = 1024
# On a GPU a micro-batch of more tokens is no faster.
CARD_TOKENS = 16_384


@dataclass(frozen=True)
class Options:
    """What may be taken of each choice, the cheapest first.

    Fields are in the order of their cost, the dearest first. A candidate costs the tuple of its
    places in them: a step in one field costs more than all steps in the fields below.
    """

    seq_len: tuple[int, ...]
    rank: tuple[int, ...]
    mode: tuple[Mode, ...]
    four_bit_base: tuple[bool, ...]
    target_modules: tuple[Targets, ...]
    optimizer: tuple[Optimizer, ...]
    attention: tuple[Attention, ...]
    embedding_offload: tuple[bool, ...]
    activation_offload: tuple[bool, ...]
    tiled_mlp: tuple[bool, ...]
    gradient_checkpointing: tuple[bool, ...]
    micro_batch: tuple[int, ...]
    """The last is the smallest."""
    batch_rows: int
    """Rows of an optimizer step: micro-batch × accumulation, whatever the micro-batch."""
    most_tokens: int | None = None
    """Micro-batches of more tokens gain nothing; None: as many as it takes."""

    def micro_batches(self, seq_len: int) -> tuple[int, ...]:
        if self.most_tokens is None:
            return self.micro_batch
        most = self.most_tokens // seq_len
        return tuple(rows for rows in self.micro_batch if rows <= most) or self.micro_batch[-1:]


def useful_micro_batches(batch_rows: int, hardware: Hardware) -> tuple[int, ...]:
    """Divisors of the batch size worth trying, the largest first."""
    most = batch_rows if hardware.kind == "cuda" else min(batch_rows, CPU_MICRO_BATCH)
    return tuple(rows for rows in range(most, 0, -1) if batch_rows % rows == 0)


def cheapest(base: Choices, options: Options, fits: Fits) -> Choices | None:
    """The cheapest candidate that fits; None where none does.

    Exact, and quicker than trying all: more tokens, rows or rank never take less memory
    (tests/memory/test_vram.py), which nothing promises of the other choices.
    """
    tokens = _first(options.seq_len, lambda tokens: any_fits(base, options, tokens, fits))
    if tokens is None:
        return None

    def rank_fits(rank: int) -> bool:
        return any_fits(base, replace(options, rank=(rank,)), tokens, fits)

    rank = _first(options.rank, rank_fits)
    assert rank is not None  # any_fits has found the least to fit
    return next(_fitting(base, replace(options, rank=(rank,)), tokens, fits))


def _first(values: tuple[int, ...], fits: Callable[[int], bool]) -> int | None:
    """The first value that fits; all values after it fit too."""
    if fits(values[0]):
        return values[0]
    place = bisect_left(values, True, lo=1, key=fits)
    return values[place] if place < len(values) else None


def any_fits(base: Choices, options: Options, seq_len: int, fits: Fits) -> bool:
    """Whether any candidate fits at this length; the smallest is tried first."""
    smallest_first = replace(
        options,
        rank=options.rank[-1:],
        mode=options.mode[::-1],
        four_bit_base=options.four_bit_base[::-1],
        target_modules=options.target_modules[::-1],
        optimizer=options.optimizer[::-1],
        attention=options.attention[::-1],
        embedding_offload=options.embedding_offload[::-1],
        activation_offload=options.activation_offload[::-1],
        tiled_mlp=options.tiled_mlp[::-1],
        gradient_checkpointing=options.gradient_checkpointing[::-1],
    )
    return next(_fitting(base, smallest_first, seq_len, fits), None) is not None


def smallest(base: Choices, options: Options) -> Choices:
    """The last resort in every choice."""
    return _with_rows(
        replace(
            base,
            seq_len=options.seq_len[-1],
            rank=options.rank[-1],
            mode=options.mode[-1],
            four_bit_base=options.four_bit_base[-1],
            target_modules=options.target_modules[-1],
            optimizer=options.optimizer[-1],
            attention=options.attention[-1],
            embedding_offload=options.embedding_offload[-1],
            activation_offload=options.activation_offload[-1],
            tiled_mlp=options.tiled_mlp[-1],
            gradient_checkpointing=options.gradient_checkpointing[-1],
        ),
        options,
        options.micro_batch[-1],
    )


def _fitting(base: Choices, options: Options, seq_len: int, fits: Fits) -> Iterator[Choices]:
    """Candidates that fit at this length, in the order of the options."""
    choices = product(
        options.rank, options.mode, options.four_bit_base, options.target_modules, options.optimizer
    )
    for rank, mode, four_bit_base, targets, optimizer in choices:
        if mode == "full" and (rank, targets) != (options.rank[0], options.target_modules[0]):
            continue  # neither is anything to it: it has been tried
        for attention, ends, offload, tiled, checkpointing in product(
            options.attention,
            options.embedding_offload,
            options.activation_offload,
            options.tiled_mlp,
            options.gradient_checkpointing,
        ):
            if (offload or tiled) and not checkpointing:
                continue  # both go with it
            candidate = replace(
                base,
                seq_len=seq_len,
                rank=rank,
                mode=mode,
                four_bit_base=four_bit_base,
                target_modules=targets,
                optimizer=optimizer,
                attention=attention,
                embedding_offload=ends,
                activation_offload=offload,
                tiled_mlp=tiled,
                gradient_checkpointing=checkpointing,
            )
            found = _most_rows(candidate, options, fits)
            if found is not None:
                yield found


def _most_rows(candidate: Choices, options: Options, fits: Fits) -> Choices | None:
    """The candidate with its largest micro-batch that fits.

    Without accumulation gradients are not in memory during the next forward pass, so a whole batch
    may fit where a part does not; among parts, fewer rows never take more.
    """
    whole, *parts = options.micro_batches(candidate.seq_len)
    if fits(_with_rows(candidate, options, whole)):
        return _with_rows(candidate, options, whole)
    if not parts or not fits(_with_rows(candidate, options, parts[-1])):
        return None
    return next(found for rows in parts if fits(found := _with_rows(candidate, options, rows)))


def _with_rows(candidate: Choices, options: Options, rows: int) -> Choices:
    accumulation = max(1, options.batch_rows // rows)
    return replace(candidate, micro_batch=rows, gradient_accumulation=accumulation)
