"""Attention over packed rows on a GPU: torch's flex attention, as transformers calls it.

Segments are ordered so that the tokens that see a key are contiguous: from the key to the end of
the last segment with this prefix. One number per key describes the mask.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ftcli.compat import attention_named
from ftcli.environment import enable_compiler
from ftcli.kernels.autocast import autocast_type
from ftcli.kernels.slots import Layout

NAME = "ftcli_flex"


def through_flex(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Attention of this file, which takes a `layout`."""
    enable_compiler()
    return attention_named(model, NAME)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    sliding_window: int | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, heads, tokens, width] → [1, tokens, heads, width]."""
    dtype = autocast_type(query) or value.dtype
    flex = ALL_ATTENTION_FUNCTIONS["flex_attention"]
    mask = layout.cached(("flex", sliding_window), lambda: _mask(layout, sliding_window))
    tensors = (tensor.to(dtype) for tensor in (query, key, value))
    attended, _ = flex(module, *tensors, mask, **keywords)
    return attended, None


AttentionInterface.register(NAME, attend)


def _mask(layout: Layout, window: int | None) -> BlockMask:
    until, positions = layout.visible_until, layout.positions

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = (key <= query) & (query < until[key])
        return visible if window is None else visible & (positions[query] - positions[key] < window)

    tokens = len(until)
    return create_block_mask(sees, None, None, tokens, tokens, device=until.device)
