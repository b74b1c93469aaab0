"""Liger's kernels on a card (`ftcli[cuda]`): rotary positions, the MLP's gate, and its RMSNorm.

transformers has the door to the first two. The norm goes through our own node (norm.py), which
casts its output once and looks at its numbers before it takes it.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

# The loss is our own (loss.py), and so is what stands around the norms.
WANTED = {
    "rope": True,
    "swiglu": True,
    "geglu": True,
    "rms_norm": False,
    "layer_norm": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def take_liger(model: PreTrainedModel) -> None:
    """Give a model Liger's kernels; rotary positions are those of all models of its type then."""
    apply_liger_kernel(model, WANTED)


def liger_norm(hidden: Tensor, weight: Tensor, epsilon: float, plus_one: bool) -> Tensor:
    """RMSNorm of [..., width] by [width], differentiable; `plus_one` as Gemma has it."""
    from liger_kernel.ops import LigerRMSNormFunction

    casting = "gemma" if plus_one else "llama"
    # Not in place: other nodes may read the gradient that comes in.
    found: Tensor = LigerRMSNormFunction.apply(
        hidden, weight, epsilon, float(plus_one), casting, False
    )
    return found
