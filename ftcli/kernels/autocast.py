"""The type that autocast computes in; it does not cast for custom autograd functions."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_type(like: Tensor) -> torch.dtype | None:
    """On the device of this tensor; None if autocast is off."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
