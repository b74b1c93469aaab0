"""Cached dequantised weights: on a CPU with enough memory, 4-bit layers dequantise once.

bitsandbytes 0.50 dequantises in each forward and each backward pass. The cache holds the same
numbers, in the type that the products are computed in.
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
        found = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        kept = found.to(layer.compute_dtype or found.dtype)
        # No buffer: it is neither saved nor moved.
        layer.__dict__["cached_weight"] = kept
        layer.forward = partial(_forward, layer)
        total += kept.numel() * kept.element_size()
    return total


def is_four_bit(layer: nn.Module) -> bool:
    """Whether this is a layer of bitsandbytes with a 4-bit weight."""
    return type(layer).__name__ == "Linear4bit" and hasattr(layer, "compute_dtype")


def cached_weight(layer: nn.Module) -> Tensor | None:
    """[out, in] of a layer that keeps it."""
    found: Tensor | None = layer.__dict__.get("cached_weight")
    return found


def _forward(layer: Any, hidden: Tensor) -> Tensor:
    kept = cached_weight(layer)
    assert kept is not None
    bias = None if layer.bias is None else layer.bias.to(kept.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(kept.dtype), kept, bias).to(hidden.dtype)
