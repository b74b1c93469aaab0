"""Peak memory of one training step: the largest of its phases, item by item."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from ftcli.memory.activations.head_bytes import LOSS_CHUNK_POSITIONS
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import Choices
from ftcli.memory.hardware import DISPLAY_BYTES, KNOWN_CARDS, Card, ComputeCapability, context_bytes
from ftcli.memory.interval import (
    Residuals,
    reserved_bytes,
    residuals_of,
    uncovered,
    widened_interval,
)
from ftcli.memory.static import Static, static_bytes
from ftcli.memory.step import Phase, outside_step_bytes, step_phases
from ftcli.memory.trained import trainable_parameters


@dataclass(frozen=True)
class Estimate:
    """Memory of one training step."""

    breakdown: dict[str, int]
    """Bytes at the peak; all but `context` add up to `peak_bytes`."""
    peak_bytes: int
    """Allocated by tensors: torch.cuda.max_memory_allocated."""
    reserved_bytes: int
    """Reserved by torch's caching allocator: torch.cuda.max_memory_reserved."""
    device_bytes: int
    """What nvidia-smi shows: reserved and the CUDA context."""
    residuals: Residuals
    """Errors of measured runs of this kind."""
    uncovered: tuple[str, ...]
    """What is outside the calibration data: each kind widens the interval."""
    managed_bytes: int
    """Optimizer states in managed memory, in none of the figures above: on the GPU while it has
    room, else in RAM."""
    peak_phase: str
    phases: dict[str, int]
    """Allocated bytes in each phase of the step, in its order."""
    timeline: dict[str, dict[str, int]]
    """The items of each phase; static ones are in all of them."""
    moments: dict[str, int]
    """Allocated bytes outside the step: validation, answers, and the merge on the CPU."""
    trainable_parameters: int
    total_parameters: int
    fits: dict[str, bool]
    """By `device_bytes`."""
    fits_upper_bound: dict[str, bool]
    """By the upper end of the interval, as `train` and --fit decide."""
    assumptions: dict[str, str | int | float | bool]

    @property
    def based_on(self) -> str:
        """What the interval is based on, in one line."""
        none = f"; no run covers {' or '.join(self.uncovered)}" if self.uncovered else ""
        return self.residuals.based_on + none

    @property
    def low_bytes(self) -> int:
        """Lower end of the interval around `device_bytes`."""
        return round(self.residuals.low * self.device_bytes)

    @property
    def high_bytes(self) -> int:
        """Upper end of it."""
        return round(self.residuals.high * self.device_bytes)


def estimate(
    architecture: Architecture, choices: Choices, capability: ComputeCapability | None = None
) -> Estimate:
    """Peak memory of training `architecture` with these choices, on a GPU of this CUDA capability.

    Without one the context is the largest known.

    Raises ModelError (`target_modules`).
    """
    if choices.attention == "sdpa" and "sdpa" not in architecture.attention:
        choices = replace(choices, attention="eager")
    static = static_bytes(architecture, choices)
    phases = step_phases(architecture, choices)
    allocated = {name: static.total_bytes + phase.total_bytes for name, phase in phases.items()}
    peak_phase = max(allocated, key=allocated.__getitem__)
    reserved = max(reserved_bytes(static.total_bytes, phase, choices) for phase in phases.values())
    context = context_bytes(capability)
    residuals = widened_interval(residuals_of(choices, "card"), architecture, choices)
    return Estimate(
        breakdown=_items(static, phases[peak_phase]) | {"context": context},
        peak_bytes=allocated[peak_phase],
        reserved_bytes=reserved,
        device_bytes=reserved + context,
        residuals=residuals,
        uncovered=uncovered(architecture, choices),
        managed_bytes=static.managed,
        peak_phase=peak_phase,
        phases=allocated,
        timeline={name: _items(static, phase) for name, phase in phases.items()},
        moments=outside_step_bytes(architecture, choices),
        trainable_parameters=trainable_parameters(architecture, choices),
        total_parameters=architecture.parameters,
        fits={known.name: card_fits(reserved, known) for known in KNOWN_CARDS},
        fits_upper_bound={
            known.name: residuals.high * (reserved + known.context_bytes) <= known.usable_bytes
            for known in KNOWN_CARDS
        },
        assumptions=_assumptions(choices),
    )


def card_fits(reserved_bytes: int, card: Card) -> bool:
    return reserved_bytes + card.context_bytes <= card.usable_bytes


def _items(static: Static, phase: Phase) -> dict[str, int]:
    """Item by item; `l2_sp` only where a recipe asks for it."""
    l2_sp = {"l2_sp": static.l2_sp} if static.l2_sp else {}
    return {
        "weights": static.weights,
        "quantization": static.quantization,
        "adapter": static.adapter,
        "gradients": phase.gradients,
        "optimizer": static.optimizer,
        **l2_sp,
        "activations": phase.activations,
        "logits": phase.logits,
        "workspace": phase.workspace,
    }


def _assumptions(choices: Choices) -> dict[str, str | int | float | bool]:
    return {
        "sequence": f"every row of the micro-batch fills {choices.seq_len} tokens",
        "label_share": choices.label_share,
        "loss_chunk_positions": LOSS_CHUNK_POSITIONS
        if choices.loss == "chunked"
        else choices.tokens,
        "attention": choices.attention,
        "attention_mask": choices.mask,
        "weight_bytes": choices.weight_bytes,
        "adapter_bytes": choices.stack.adapter_bytes,
        "optimizer_kernel": "foreach" if choices.stack.foreach_optimizer else "fused",
        "display_bytes": DISPLAY_BYTES,
    }


class TextbookFigure(NamedTuple):
    """Memory of weights, gradients and AdamW's two states, without any activation."""

    label: str
    total_bytes: int
    why: str


def textbook(architecture: Architecture) -> list[TextbookFigure]:
    """Full fine-tuning in three precisions, by bytes per parameter."""
    return [
        TextbookFigure(
            "fp32",
            16 * architecture.parameters,
            "per parameter 4 weights + 4 gradients + 8 AdamW states (104 GiB for 7 billion)",
        ),
        TextbookFigure(
            "bf16 mixed",
            16 * architecture.parameters,
            "as fp32: the fp32 weights are the master copy; autocast's bf16 copy of them takes 2 "
            "more in the forward pass, before the 4 of the gradients",
        ),
        TextbookFigure(
            "pure bf16",
            8 * architecture.parameters,
            "per parameter 2 weights + 2 gradients + 4 AdamW states: no master copy, small updates "
            "are rounded away",
        ),
    ]
