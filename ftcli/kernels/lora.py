"""Fused LoRA: a frozen weight and its low-rank update as one autograd function.

PEFT runs five operations (two products, dropout, scaling, a sum), which read and write the outputs
again and save more for backward. Here the same products are summed in place.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ftcli.kernels.autocast import autocast_type
from ftcli.kernels.dequantised import cached_weight, is_four_bit


def fuse_lora(model: nn.Module) -> int:
    """Fuse each plain LoRA layer; returns how many.

    Not fused: LoRA with dropout, DoRA or its own bias, and bases that are neither plain linear
    layers nor 4-bit ones. A 4-bit layer is fused while it caches its dequantised weight.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    fused = [layer for layer in layers if _is_plain(layer)]
    for layer in fused:
        layer.forward = partial(_forward, layer, layer.forward)
    return len(fused)


def _is_plain(layer: Any) -> bool:
    base = layer.base_layer
    if len(layer.active_adapters) != 1 or (type(base) is not nn.Linear and not is_four_bit(base)):
        return False
    name = layer.active_adapters[0]
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_B[name].bias is None
        and not layer.fan_in_fan_out
    )


def _forward(
    layer: Any, peft_forward: Any, hidden: Tensor, *arguments: Any, **keywords: Any
) -> Tensor:
    """The layer's forward; PEFT's own if the layer is disabled, merged, or of mixed types."""
    base, name = layer.base_layer, layer.active_adapters[0]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    weight = cached_weight(base) if is_four_bit(base) else base.weight
    if weight is None or layer.disable_adapters or layer.merged or arguments or keywords:
        return peft_forward(hidden, *arguments, **keywords)
    cast_to = autocast_type(hidden)
    dtype = cast_to or hidden.dtype
    if cast_to is None:
        mixed = not dtype == weight.dtype == down.dtype
    else:
        mixed = is_four_bit(base) and not dtype == hidden.dtype == weight.dtype
    if mixed:
        return peft_forward(hidden, *arguments, **keywords)
    bias = None if base.bias is None else base.bias.to(dtype)
    hidden, weight, down, up = (part.to(dtype) for part in (hidden, weight, down, up))
    scale = layer.scaling[name]
    rows = hidden.flatten(0, -2)
    output: Tensor
    if torch.is_grad_enabled():
        output = _LowRank.apply(rows, weight, bias, down, up, scale)
    else:
        output, _ = _product(rows, weight.T, bias, down.T, up.T, scale)
    return output.view(*hidden.shape[:-1], -1)  # outside the function: Falcon adds to it in place


def _product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [n, out], and the rows times A [n, rank].

    The factors are transposed: weight [in, out], down [in, rank], up [rank, out].
    """
    inner = torch.mm(rows, down)
    found = torch.mm(rows, weight) if bias is None else torch.addmm(bias, rows, weight)
    return found.addmm_(inner, up, alpha=scale), inner


class _LowRank(torch.autograd.Function):
    """x → x Wᵀ + b + scale · x Aᵀ Bᵀ, where W and b are frozen.

    Shapes: x [n, in], W [out, in], A [rank, in], B [out, rank]; all of one type.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias, down, up, scale):  # type: ignore[no-untyped-def]
        found, inner = _product(rows, weight.T, bias, down.T, up.T, scale)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale = scale
        return found

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        rows, weight, down, up, inner = ctx.saved_tensors
        inner_grad = (gradient @ up).mul_(ctx.scale)
        rows_grad = None
        if ctx.needs_input_grad[0]:
            rows_grad = (gradient @ weight).addmm_(inner_grad, down)
        up_grad = (inner.T @ gradient).mul_(ctx.scale).T  # faster on a CPU than gradient.T @ inner
        return rows_grad, None, None, inner_grad.T @ rows, up_grad, None
