"""Cached dequantised weights: on a CPU with enough memory, 4-bit layers dequantise once.

bitsandbytes 0.50 dequantises in each forward and each backward pass. The cache has the same values,
in the type of the products.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cache_dequantised(model: nn.Module) -> int:
    """Cache the weight of each 4-bit layer; returns the bytes that this takes."""
    total = 0
    layers: list[Any] = [layer for layer in model.modules() if is_four_bit(layer)]
    for layer in layers:
        cached = dequantised(layer, layer.compute_dtype)
        # Not a buffer, which would be saved and moved.
        layer.__dict__["cached_weight"] = cached
        layer.forward = partial(_forward, layer)
        total += cached.numel() * cached.element_size()
    return total


def is_four_bit(layer: nn.Module) -> bool:
    """Whether this is a layer of bitsandbytes with a 4-bit weight."""
    return type(layer).__name__ == "Linear4bit" and hasattr(layer, "compute_dtype")


def dequantised(layer: Any, dtype: torch.dtype | None) -> Tensor:
    """Weight [out, in] of a 4-bit layer; without a type, in that of its files."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight if dtype is None else weight.to(dtype)


def product_of_4_bits(rows: Tensor, layer: Any, bias: Tensor | None) -> Tensor:
    """[n, in] times the 4-bit weight of a layer, in one kernel where bitsandbytes has one."""
    from bitsandbytes import matmul_4bit

    found: Tensor = matmul_4bit(rows, layer.weight, layer.weight.quant_state, bias=bias)
    return found


def cached_weight(layer: nn.Module) -> Tensor | None:
    """Cached dequantised weight [out, in] of a 4-bit layer."""
    found: Tensor | None = layer.__dict__.get("cached_weight")
    return found


def _forward(layer: Any, hidden: Tensor) -> Tensor:
    weight = cached_weight(layer)
    assert weight is not None
    bias = None if layer.bias is None else layer.bias.to(weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(weight.dtype), weight, bias).to(hidden.dtype)
