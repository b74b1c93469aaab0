"""From what tensors hold to what torch's allocator reserves, and what nvidia-smi shows."""

from __future__ import annotations

from ftcli.memory.choices import Choices
from ftcli.memory.step import Phase

# What the caching allocator holds beyond the tensors, in shares of them. Fitted on all published
# runs of stacks like ours that state reserved or nvidia-smi figures (docs/vram.md); none of them
# has a chunked loss.
_OF_ALL = 0.02
_OF_ACTIVATIONS = 0.15
# 16-bit logits and their fp32 copies do not fit into each other's blocks; where the head computes
# in fp32 all blocks are of one size and are used again.
_OF_16_BIT_LOGITS = 0.40
_OF_FP32_LOGITS = 0.10


def reserved_bytes(static_bytes: int, phase: Phase, choices: Choices) -> int:
    """Bytes that torch's caching allocator holds at one moment of the step."""
    allocated = static_bytes + phase.total_bytes
    return round(
        (1 + _OF_ALL) * allocated
        + _OF_ACTIVATIONS * phase.activations
        + _logits_share(choices) * phase.logits
    )


def _logits_share(choices: Choices) -> float:
    if choices.loss == "chunked" or choices.stack.fused_loss_bytes_per_hidden is not None:
        return 0.0
    return _OF_FP32_LOGITS if choices.compute_bytes == 4 else _OF_16_BIT_LOGITS
