"""The moments of a training step, of which the greatest is the peak.

Logits are freed before the first layer's backward pass, and activations before the optimizer
step, so the items of different moments never add up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ftcli.memory.activations import layers_bytes, prefix_cache_bytes, rebuilt_layer_bytes
from ftcli.memory.choices import Choices
from ftcli.memory.copies import (
    backward_copies_bytes,
    dequantised_bytes,
    dora_bytes,
    forward_copies_bytes,
    layer_copies_bytes,
)
from ftcli.memory.head import head_bytes
from ftcli.memory.shapes import Shape
from ftcli.memory.trained import (
    embedding_gradient_bytes,
    gradient_bytes,
    head_gradient_bytes,
    hold_piece_bytes,
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
    forward_copies = CUBLAS_BYTES + forward_copies_bytes(shape, choices)
    own_copies = max(dora_bytes(shape, choices), dequantised_bytes(shape, choices))
    cache = prefix_cache_bytes(shape, choices)
    head_gradient = head_gradient_bytes(shape, choices)
    return {
        "end of forward": Phase(
            gradients=held,
            activations=kept + cache,
            workspace=forward_copies + own_copies,
        ),
        "head and loss": Phase(
            gradients=held,
            # ftcli.models.loss gives the cache up before the head runs.
            activations=kept + (cache if choices.loss == "full" else 0),
            logits=head_bytes(shape, choices),
            workspace=forward_copies,
        ),
        "backward of one layer": Phase(
            gradients=held + head_gradient if shape.tied else max(held, head_gradient),
            activations=kept + layer,
            workspace=CUBLAS_BYTES + backward_copies_bytes(shape, choices),
        ),
        "end of backward": _end_of_backward(shape, choices),
        "optimizer step": Phase(
            gradients=gradients,
            workspace=CUBLAS_BYTES
            # One after the other: the pull to the start comes before the step.
            + max(gradients if _copies_in_step(choices) else 0, hold_piece_bytes(shape, choices)),
        ),
    }


def _end_of_backward(shape: Shape, choices: Choices) -> Phase:
    """The first layer, of which all is still there, whether rebuilt or kept; or the embeddings
    after it, whose gradient is added to one that is there: of the head, if it is the same matrix,
    or of the micro-batches before."""
    gradients = _all_gradients_bytes(shape, choices)
    embeddings = embedding_gradient_bytes(shape, choices)
    stepped = choices.stack.steps_in_backward
    held = choices.gradient_accumulation > 1 and not stepped
    # Where the head is the same matrix, its gradient waits for that of the embeddings.
    waiting = embeddings if shape.tied and (held or stepped) else 0
    last_gradient = embeddings if held or (shape.tied and not stepped) else 0
    # Published runs of full training take as much as with all gradients beside the first layer.
    to_come = 0 if choices.mode == "full" or shape.tied or held else embeddings
    first = Phase(
        gradients=gradients + waiting - to_come,
        activations=rebuilt_layer_bytes(shape, replace(choices, gradient_checkpointing=True)),
        workspace=CUBLAS_BYTES + layer_copies_bytes(shape, choices),
    )
    last = Phase(
        gradients=gradients + waiting + last_gradient,
        activations=choices.residual_bytes * shape.hidden * choices.tokens,
        workspace=CUBLAS_BYTES,
    )
    return max(first, last, key=lambda phase: phase.total_bytes)


def _all_gradients_bytes(shape: Shape, choices: Choices) -> int:
    """Gradients after the backward pass."""
    if choices.stack.steps_in_backward:
        tensors = trained_tensors(shape, choices)
        return max(each.elements * each.element_bytes for each in tensors)
    return gradient_bytes(shape, choices)


def _copies_in_step(choices: Choices) -> bool:
    """torch's foreach AdamW makes one copy of the square roots (optim/adam.py)."""
    return choices.optimizer == "adamw" and choices.stack.foreach_optimizer
