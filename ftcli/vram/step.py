"""The moments of a training step, of which the greatest is the peak.

Logits are freed before the first layer's backward pass, and activations before the optimizer
step, so the items of different moments never add up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ftcli.shapes import Shape
from ftcli.vram.activations import layers_bytes, prefix_cache_bytes, rebuilt_layer_bytes
from ftcli.vram.choices import Choices
from ftcli.vram.copies import dora_bytes, forward_copies_bytes, layer_copies_bytes
from ftcli.vram.head import head_bytes
from ftcli.vram.trained import gradient_bytes, head_gradient_bytes, trained_tensors

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
    forward_copies = forward_copies_bytes(shape, choices)
    layer_copies = layer_copies_bytes(shape, choices)
    cache = prefix_cache_bytes(shape, choices)
    head_gradient = head_gradient_bytes(shape, choices)
    saved_copies = 0 if choices.checkpointing else forward_copies
    return {
        "end of forward": Phase(
            gradients=held,
            activations=kept + cache,
            workspace=CUBLAS_BYTES + forward_copies + dora_bytes(shape, choices),
        ),
        "head and loss": Phase(
            gradients=held,
            activations=kept + cache,
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
            # Of the first layer all is still there, whether rebuilt or kept.
            activations=rebuilt_layer_bytes(shape, replace(choices, gradient_checkpointing=True)),
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
