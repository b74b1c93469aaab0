"""Peak memory of one training step: the greatest of its phases, item by item.

Logits are freed before the first layer's backward pass, and activations before the optimizer
step, so the items of different phases never add up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ftcli.hardware import DISPLAY_BYTES, KNOWN_CARDS, Card, ComputeCapability, context_bytes
from ftcli.shapes import Shape
from ftcli.vram.activations import layers_bytes, rebuilt_layer_bytes
from ftcli.vram.choices import Choices
from ftcli.vram.head import LOSS_CHUNK_POSITIONS, head_bytes
from ftcli.vram.static import (
    Static,
    gradient_bytes,
    static_bytes,
    trainable_parameters,
    trained_element_bytes,
)

# cuBLAS, one handle: CUBLAS_WORKSPACE_CONFIG :4096:2:16:8 (aten/cuda/CublasHandlePool.cpp).
CUBLAS_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024

# What the caching allocator reserves beyond what tensors hold, fitted on published runs with
# both numbers: a share of everything, and more for activations and for the logits of a full loss.
_RESERVED_OF_ALL = 0.05
_RESERVED_OF_ACTIVATIONS = 0.15
_RESERVED_OF_FULL_LOGITS = 0.30


@dataclass(frozen=True)
class Phase:
    """Bytes of what lives beside the static items in one phase of the step."""

    gradients: int = 0
    activations: int = 0
    logits: int = 0
    workspace: int = 0

    @property
    def total_bytes(self) -> int:
        return self.gradients + self.activations + self.logits + self.workspace


@dataclass(frozen=True)
class Estimate:
    """Memory of one training step."""

    breakdown: dict[str, int]
    """Bytes at the peak; all but `context` add up to `peak_bytes`."""
    peak_bytes: int
    """Allocated by tensors: torch.cuda.max_memory_allocated."""
    reserved_bytes: int
    """Held by torch's caching allocator: torch.cuda.max_memory_reserved."""
    device_bytes: int
    """What nvidia-smi shows: reserved and the CUDA context."""
    managed_bytes: int
    """Optimizer states in managed memory, in none of the figures above: they use what is free on
    the card and leave it for the host's memory when it fills up."""
    peak_phase: str
    phases: dict[str, int]
    trainable_parameters: int
    total_parameters: int
    fits: dict[str, bool]
    assumptions: dict[str, str | int | float | bool]


def estimate(
    shape: Shape, choices: Choices, capability: ComputeCapability | None = None
) -> Estimate:
    """Peak memory of training `shape` as chosen, on a card of this CUDA capability.

    Without one the context is the largest known.

    Raises ModelError (`target_modules`).
    """
    if shape.capped_scores and choices.attention == "sdpa":
        # transformers refuses sdpa for such a model.
        choices = replace(choices, attention="eager")
    static = static_bytes(shape, choices)
    phases = step_phases(shape, choices)
    allocated = {name: static.total_bytes + phase.total_bytes for name, phase in phases.items()}
    peak_phase = max(allocated, key=allocated.__getitem__)
    reserved_bytes = max(_reserved_bytes(allocated[name], phases[name], choices) for name in phases)
    context = context_bytes(capability)
    return Estimate(
        breakdown=_breakdown(static, phases[peak_phase], context),
        peak_bytes=allocated[peak_phase],
        reserved_bytes=reserved_bytes,
        device_bytes=reserved_bytes + context,
        managed_bytes=static.managed,
        peak_phase=peak_phase,
        phases=allocated,
        trainable_parameters=trainable_parameters(shape, choices),
        total_parameters=shape.parameters,
        fits={known.name: card_fits(reserved_bytes, known) for known in KNOWN_CARDS},
        assumptions=_assumptions(choices),
    )


def card_fits(reserved_bytes: int, card: Card) -> bool:
    return reserved_bytes + card.context_bytes <= card.usable_bytes


def step_phases(shape: Shape, choices: Choices) -> dict[str, Phase]:
    """The four moments of a step that can be its peak."""
    gradients = gradient_bytes(shape, choices)
    held = gradients if choices.gradient_accumulation > 1 else 0
    kept = layers_bytes(shape, choices)
    layer = rebuilt_layer_bytes(shape, choices)
    forward_copies = _forward_copies_bytes(shape, choices)
    layer_copies = _layer_copies_bytes(shape, choices)
    head_gradient = _head_gradient_bytes(shape, choices)
    saved_copies = 0 if choices.gradient_checkpointing else forward_copies
    return {
        "head and loss": Phase(
            gradients=held,
            activations=kept,
            logits=head_bytes(shape, choices),
            workspace=CUBLAS_BYTES + forward_copies,
        ),
        "backward of one layer": Phase(
            gradients=max(held, head_gradient),
            activations=kept + layer,
            workspace=CUBLAS_BYTES + max(layer_copies, saved_copies),
        ),
        "end of backward": Phase(
            gradients=gradients + (head_gradient if shape.tied else 0),
            activations=layer,
            workspace=CUBLAS_BYTES + layer_copies,
        ),
        "optimizer step": Phase(
            gradients=gradients,
            workspace=CUBLAS_BYTES + (gradients if _copies_in_step(choices) else 0),
        ),
    }


def _head_gradient_bytes(shape: Shape, choices: Choices) -> int:
    """The trained head's gradient exists before that of any layer.

    Where the head is the embedding too, autograd holds both gradients until it adds them.
    """
    if choices.mode != "full":
        return 0
    return shape.vocab * shape.hidden * trained_element_bytes(choices)


def _copies_in_step(choices: Choices) -> bool:
    """torch's foreach AdamW makes one copy of the square roots (optim/adam.py)."""
    return choices.optimizer == "adamw" and choices.stack.foreach_optimizer


def _forward_copies_bytes(shape: Shape, choices: Choices) -> int:
    """16-bit copies of fp32 weights that autocast holds to the end of the forward pass.

    It keeps those of trained weights (aten/autocast_mode.cpp, cached_cast); the backward pass
    keeps those of frozen ones too, without checkpointing.
    """
    if not choices.autocast:
        return 0
    if choices.mode == "full":
        return 2 * (shape.linear_parameters + shape.expert_parameters)
    adapters = trainable_parameters(shape, choices) if choices.stack.adapter_bytes == 4 else 0
    frozen_fp32 = choices.mode == "lora" and choices.weight_bytes == 4
    kept_base = frozen_fp32 and not choices.gradient_checkpointing
    return 2 * (adapters + (shape.linear_parameters if kept_base else 0))


def _layer_copies_bytes(shape: Shape, choices: Choices) -> int:
    """16-bit copies of weights while one layer runs backward: the largest dequantised or cast
    matrix, or the whole layer where its weights are trained."""
    cast = choices.autocast and choices.weight_bytes == 4
    if choices.mode == "full":
        layer = (shape.linear_parameters + shape.expert_parameters) // shape.layers
        return 2 * layer if cast else 0
    if choices.mode == "qlora" or cast:
        return 2 * max(inputs * outputs for inputs, outputs in shape.linear_modules().values())
    return 0


def _reserved_bytes(allocated_bytes: int, phase: Phase, choices: Choices) -> int:
    full_logits = phase.logits if choices.loss == "full" else 0
    return round(
        (1 + _RESERVED_OF_ALL) * allocated_bytes
        + _RESERVED_OF_ACTIVATIONS * phase.activations
        + _RESERVED_OF_FULL_LOGITS * full_logits
    )


def _breakdown(static: Static, peak: Phase, context: int) -> dict[str, int]:
    return {
        "weights": static.weights,
        "quantization": static.quantization,
        "adapter": static.adapter,
        "gradients": peak.gradients,
        "optimizer": static.optimizer,
        "activations": peak.activations,
        "logits": peak.logits,
        "workspace": peak.workspace,
        "context": context,
    }


def _assumptions(choices: Choices) -> dict[str, str | int | float | bool]:
    return {
        "sequence": f"every row of the micro-batch fills {choices.seq_len} tokens",
        "labelled_share": choices.labelled_share,
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
