"""Fused LoRA: a frozen weight and its low-rank update as one autograd function.

PEFT runs five operations (two products, dropout, scaling, a sum), which read and write the outputs
again and save more for backward. Here the same products are summed in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ftcli.kernels.autocast import autocast_type
from ftcli.kernels.dequantised import cached_weight, dequantised, is_four_bit, product_of_4_bits


def fuse_lora(model: nn.Module) -> int:
    """Fuse each plain LoRA layer; returns how many.

    Not fused: LoRA with dropout, DoRA or its own bias, and bases that are neither plain linear
    layers nor 4-bit ones.
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
    if layer.disable_adapters or layer.merged or arguments or keywords:
        return peft_forward(hidden, *arguments, **keywords)
    four_bit = is_four_bit(base)
    weight = cached_weight(base) if four_bit else base.weight
    weight_dtype = base.compute_dtype if weight is None else weight.dtype
    cast_to = autocast_type(hidden)
    dtype = cast_to or hidden.dtype
    if cast_to is None:
        mixed = not dtype == weight_dtype == down.dtype
    else:
        mixed = four_bit and not dtype == hidden.dtype == weight_dtype
    if mixed:
        return peft_forward(hidden, *arguments, **keywords)
    hidden, down, up = (part.to(dtype) for part in (hidden, down, up))
    weight, bias = (None if part is None else part.to(dtype) for part in (weight, base.bias))
    frozen = _Frozen(weight, bias, base, layer.scaling[name])
    rows = hidden.flatten(0, -2)
    output: Tensor
    if torch.is_grad_enabled():
        output = _LowRank.apply(rows, down, up, frozen)
    else:
        output, _ = frozen.product(rows, down, up)
    return output.view(*hidden.shape[:-1], -1)  # outside the function: Falcon adds to it in place


@dataclass(frozen=True)
class _Frozen:
    """A layer's base: W [out, in] and b [out]."""

    weight: Tensor | None
    """None: it is in 4 bits, and dequantised in each product."""
    bias: Tensor | None
    layer: Any
    scale: float

    def product(self, rows: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """x Wᵀ + b + scale · x Aᵀ Bᵀ [n, out], and x Aᵀ; shapes as in `_LowRank`."""
        inner = torch.mm(rows, down.T)
        if self.weight is None:
            found = product_of_4_bits(rows, self.layer, self.bias)
        elif self.bias is None:
            found = torch.mm(rows, self.weight.T)
        else:
            found = torch.addmm(self.bias, rows, self.weight.T)
        return found.addmm_(inner, up.T, alpha=self.scale), inner


class _LowRank(torch.autograd.Function):
    """x → x Wᵀ + b + scale · x Aᵀ Bᵀ, where W and b are frozen.

    Shapes: x [n, in], A [rank, in], B [out, rank]; all of one type.
    """

    @staticmethod
    def forward(ctx, rows, down, up, frozen):  # type: ignore[no-untyped-def]
        found, inner = frozen.product(rows, down, up)
        ctx.save_for_backward(rows, frozen.weight, down, up, inner)
        ctx.layer, ctx.scale = frozen.layer, frozen.scale
        return found

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        rows, weight, down, up, inner = ctx.saved_tensors
        inner_grad = (gradient @ up).mul_(ctx.scale)
        rows_grad = None
        if ctx.needs_input_grad[0]:
            weight = dequantised(ctx.layer, gradient.dtype) if weight is None else weight
            rows_grad = (gradient @ weight).addmm_(inner_grad, down)
        up_grad = (inner.T @ gradient).mul_(ctx.scale).T  # faster on a CPU than gradient.T @ inner
        return rows_grad, inner_grad.T @ rows, up_grad, None
