"""Liger's kernels on a GPU (`ftcli[cuda]`): rotary positions, the MLP's gate, and its RMSNorm.

transformers patches the first two. The norm is compared with the model's own before it replaces it.
Under autocast its output is cast once for all products that read it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from ftcli.kernels.autocast import autocast_type

# ftcli has its own loss (loss.py), and `fuse_norms` replaces norms.
LIGER_KERNELS = {
    "rope": True,
    "swiglu": True,
    "geglu": True,
    "rms_norm": False,
    "layer_norm": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def apply_liger(model: PreTrainedModel) -> int:
    """Patch a model with Liger's kernels; returns how many norms use its RMSNorm.

    Rotary positions are then Liger's for all models of this type in the process.
    """
    apply_liger_kernel(model, LIGER_KERNELS)
    return fuse_norms(model)


def fuse_norms(model: nn.Module) -> int:
    """Use Liger's kernel for each RMSNorm; returns how many use it.

    Llama's and Gemma's norms are distinguished by their outputs; other norms stay.
    """
    found, cast = 0, _read_by_linear_layers_only(model)
    for module in model.modules():
        if not type(module).__name__.endswith("RMSNorm") or _epsilon(module) is None:
            continue
        for plus_one in (False, True):
            forward = partial(_forward, module, module.forward, plus_one, module in cast)
            if _is_same(module, forward):
                module.forward = forward
                found += 1
                break
    return found


def _read_by_linear_layers_only(model: nn.Module) -> set[nn.Module]:
    """Norms whose output only linear layers read (names of transformers 5). Gemma's other norms are
    added to the residual stream, and query and key norms are rotated."""
    found = set()
    for layer in model.modules():
        norms = {n: m for n, m in layer.named_children() if n.endswith("_layernorm")}
        if "input_layernorm" in norms:
            four = "pre_feedforward_layernorm" in norms
            second = "pre_feedforward_layernorm" if four else "post_attention_layernorm"
            found |= {norms["input_layernorm"], norms[second]}
    return found


def _is_same(module: Any, forward: Callable[[Tensor], Tensor]) -> bool:
    """Compares on fixed numbers, without using random generators."""
    weight = module.weight
    probe = torch.linspace(-40, 50, 3 * len(weight), device=weight.device).sin()
    probe = probe.view(3, -1).to(weight.dtype)
    with torch.no_grad():
        expected, found = module(probe), forward(probe)
    # The last digit depends on where it is rounded to 16 bits.
    tolerance = torch.finfo(expected.dtype).eps * 4
    same = expected.dtype == found.dtype
    return same and torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def _epsilon(module: Any) -> float | None:
    found: float | None = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found


def _forward(
    module: Any, own: Callable[[Tensor], Tensor], plus_one: bool, cast: bool, hidden: Tensor
) -> Tensor:
    # transformers returns the wider of both types, Liger the input's.
    if hidden.dtype != module.weight.dtype:
        return own(hidden)
    epsilon = _epsilon(module)
    assert epsilon is not None
    normed = liger_norm(hidden, module.weight, epsilon, plus_one)
    dtype = autocast_type(hidden) if cast else None
    return normed if dtype is None else normed.to(dtype)


def liger_norm(hidden: Tensor, weight: Tensor, epsilon: float, plus_one: bool) -> Tensor:
    """RMSNorm of [..., width] by [width], differentiable; `plus_one` as in Gemma."""
    from liger_kernel.ops import LigerRMSNormFunction

    casting = "gemma" if plus_one else "llama"
    # Not in place: other nodes may read the incoming gradient.
    found: Tensor = LigerRMSNormFunction.apply(
        hidden, weight, epsilon, float(plus_one), casting, False
    )
    return found
