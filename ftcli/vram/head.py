"""The head and the loss: logits are the widest tensor of a training step."""

from __future__ import annotations

from ftcli.shapes import Shape
from ftcli.vram.choices import Choices

LOSS_CHUNK_POSITIONS = 1024
"""Labelled positions whose logits exist at once in ftcli.engine.loss."""

# fp32 logits and logsumexp's copy of them; where they are capped, the cap's slope too. Counted with
# torch.profiler on ftcli.engine.loss, for one chunk and for several.
_BYTES_PER_LOGIT = {"plain": 8, "scaled": 8, "softcapped": 12}


def head_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes of the last norm, the logits, their loss and the gradient it hands to the layers."""
    fused = choices.stack.fused_loss_bytes_per_hidden
    if fused is not None:
        return _head_copy_bytes(shape, choices) + fused * shape.hidden * choices.tokens
    if choices.loss == "full":
        return _head_copy_bytes(shape, choices) + _full_loss_bytes(shape, choices)
    return _hidden_states_bytes(shape, choices) + _chunked_logits_bytes(shape, choices)


def _full_loss_bytes(shape: Shape, choices: Choices) -> int:
    """Logits of all tokens, labelled or not (transformers/loss/loss_utils.py)."""
    per_logit = choices.stack.full_loss_bytes_per_logit + (4 if shape.head == "softcapped" else 0)
    return choices.tokens * (per_logit * shape.vocab + 6 * shape.hidden)


def _hidden_states_bytes(shape: Shape, choices: Choices) -> int:
    """The last norm's fp32 copy and output; their labelled part, cast, and its gradient."""
    residual, compute = choices.residual_bytes, choices.compute_bytes
    cast = compute if compute != residual else 0
    norm = choices.tokens * (4 + residual)
    labelled = choices.labelled_tokens * (residual + cast + compute)
    return shape.hidden * (norm + labelled)


def _chunked_logits_bytes(shape: Shape, choices: Choices) -> int:
    """The logits of a chunk and the head's gradient, summed over chunks in the head's type."""
    logits = min(choices.labelled_tokens, LOSS_CHUNK_POSITIONS) * shape.vocab
    per_logit = _BYTES_PER_LOGIT[shape.head]
    copy = _head_copy_bytes(shape, choices)
    if not choices.trains_head:
        return copy + logits * per_logit
    compute, weight = choices.compute_bytes, choices.weight_bytes
    matrix = shape.vocab * shape.hidden
    # A chunk's share of the gradient, cast to the head's type, while the chunk is still there.
    share = matrix * (compute + (weight if copy else 0))
    waiting = logits * (4 + (compute if compute < 4 else 0))
    forward = copy + matrix * weight + max(logits * per_logit, waiting + share)
    # The backward pass multiplies the sum by the upstream gradient, into a second matrix.
    return max(forward, 2 * matrix * weight)


def _head_copy_bytes(shape: Shape, choices: Choices) -> int:
    """A copy of the head's weight in the type of the arithmetic, where the two differ."""
    if choices.compute_bytes == choices.weight_bytes:
        return 0
    return shape.vocab * shape.hidden * choices.compute_bytes
