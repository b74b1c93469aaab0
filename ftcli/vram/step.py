"""The moments of a training step, of which the greatest is the peak.

Logits are freed before the first layer's backward pass, and activations before the optimizer
step, so the items of different moments never add up.
"""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.shapes import Shape
from ftcli.vram.activations import layers_bytes, rebuilt_layer_bytes
from ftcli.vram.choices import Choices
from ftcli.vram.head import head_bytes
from ftcli.vram.trained import (
    gradient_bytes,
    head_gradient_bytes,
    trainable_parameters,
    trained_tensors,
)

# cuBLAS, one handle: CUBLAS_WORKSPACE_CONFIG :4096:2:16:8 (aten/cuda/CublasHandlePool.cpp).
CUBLAS_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024


@dataclass(frozen=True)
class Phase:
    """Bytes of what lives beside the static items at one moment of the step."""

    gradients: int = 0
    activations: int = 0
    logits: int = 0
    workspace: int = 0

    @property
    def total_bytes(self) -> int:
        return self.gradients + self.activations + self.logits + self.workspace


def step_phases(shape: Shape, choices: Choices) -> dict[str, Phase]:
    """The five moments of a step, in their order."""
    gradients = _all_gradients_bytes(shape, choices)
    held = gradients if choices.gradient_accumulation > 1 else 0
    kept = layers_bytes(shape, choices)
    layer = rebuilt_layer_bytes(shape, choices)
    forward_copies = _forward_copies_bytes(shape, choices)
    layer_copies = _layer_copies_bytes(shape, choices)
    head_gradient = head_gradient_bytes(shape, choices)
    saved_copies = 0 if choices.checkpointing else forward_copies
    return {
        "end of forward": Phase(
            gradients=held,
            activations=kept,
            workspace=CUBLAS_BYTES + forward_copies,
        ),
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


def _all_gradients_bytes(shape: Shape, choices: Choices) -> int:
    """Gradients at the end of the backward pass: of a tied head, both until autograd adds them."""
    if choices.stack.steps_in_backward:
        tensors = trained_tensors(shape, choices)
        return max(each.elements * each.element_bytes for each in tensors)
    return gradient_bytes(shape, choices)


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
    frozen_fp32 = choices.quantization is None and choices.weight_bytes == 4
    kept_base = frozen_fp32 and not choices.checkpointing
    return 2 * (adapters + (shape.linear_parameters if kept_base else 0))


def _layer_copies_bytes(shape: Shape, choices: Choices) -> int:
    """16-bit copies of weights while one layer runs backward: the largest dequantised or cast
    matrix, or the whole layer where its weights are trained."""
    cast = choices.autocast and choices.weight_bytes == 4
    if choices.mode == "full":
        layer = (shape.linear_parameters + shape.expert_parameters) // shape.layers
        return 2 * layer if cast else 0
    matrix = 2 * max(inputs * outputs for inputs, outputs in shape.linear_modules().values())
    # DoRA takes the norm of the weight and its update together (peft, tuners/lora/dora.py).
    summed = matrix if choices.dora else 0
    return summed + (matrix if choices.quantization or cast else 0)
