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
    from bitsandbytes.functional import dequantize_4bit

    total = 0
    layers: list[Any] = [layer for layer in model.modules() if is_four_bit(layer)]
    for layer in layers:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        cached = weight.to(layer.compute_dtype or weight.dtype)
        # Not a buffer, which would be saved and moved.
        layer.__dict__["cached_weight"] = cached
        layer.forward = partial(_forward, layer)
        total += cached.numel() * cached.element_size()
    return total


def is_four_bit(layer: nn.Module) -> bool:
    """Whether this is a layer of bitsandbytes with a 4-bit weight."""
    return type(layer).__name__ == "Linear4bit" and hasattr(layer, "compute_dtype")


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
