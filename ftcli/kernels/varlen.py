"""Attention over packed rows on a GPU: torch's `varlen_attn`, its flash kernel for rows of several
lengths in one sequence.

Each segment of the prefix tree is a row of its own. It sees the tokens before it in its rows and
its own: keys and values of a shared prefix are repeated for each segment after it. The kernel
aligns queries with the last keys (flash-attention 2.1), so that causal masks and windows count
from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from ftcli.data.tokenizing.prefix_tree import PrefixTree
from ftcli.kernels.autocast import autocast_type

NAME = "ftcli_varlen"


@dataclass(frozen=True, eq=False)
class KeyLayout:
    """The keys that each segment of a prefix tree sees."""

    query_ends: Tensor
    """[segments + 1], int32: 0, then the end of each segment."""
    key_ends: Tensor
    """[segments + 1], int32: the same of its keys."""
    keys: Tensor | None
    """[keys]: token of each key; None: no segment has a prefix, and each sees its own tokens."""
    most_queries: int
    most_keys: int

    def changed(self, change: Callable[[Tensor], Tensor]) -> KeyLayout:
        """The same with other tensors: on another device, or in pinned memory."""
        keys = None if self.keys is None else change(self.keys)
        ends = (change(self.query_ends), change(self.key_ends))
        return KeyLayout(*ends, keys, self.most_queries, self.most_keys)


def key_layout(tree: PrefixTree) -> KeyLayout:
    """The keys of a tree whose segments are in packed order."""
    lengths = [segment.end - segment.start for segment in tree.segments]
    counts = [each.position + own for each, own in zip(tree.segments, lengths, strict=True)]
    keys = None
    if any(segment.before for segment in tree.segments):
        spans = [span for each in tree.segments for span in (*each.before, (each.start, each.end))]
        keys = torch.cat([torch.arange(*span) for span in spans])
    return KeyLayout(_ends(lengths), _ends(counts), keys, max(lengths), max(counts))


def _ends(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def attend(  # noqa: PLR0913 - as transformers calls it
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: KeyLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, heads, tokens, width] → [1, tokens, heads, width]."""
    dtype = autocast_type(query) or value.dtype
    query, key, value = (each.squeeze(0).transpose(0, 1).to(dtype) for each in (query, key, value))
    if layout.keys is not None:
        key, value = (_Repeated.apply(each, layout.keys) for each in (key, value))
    output = varlen_attn(
        query,
        key,
        value,
        layout.query_ends,
        layout.key_ends,
        layout.most_queries,
        layout.most_keys,
        scale=scaling,
        # Keys before a query and after it; a window counts the query itself.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output.unsqueeze(0), None


AttentionInterface.register(NAME, attend)


class _Repeated(torch.autograd.Function):
    """[tokens, heads, width] → [keys, heads, width]; the gradients of a token are summed in fp32,
    where autograd would round each sum to 16 bits."""

    @staticmethod
    def forward(ctx, tensor, keys):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(keys)
        ctx.tokens = len(tensor)
        return tensor.index_select(0, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        (keys,) = ctx.saved_tensors
        total = upstream.new_zeros((ctx.tokens, *upstream.shape[1:]), dtype=torch.float32)
        return total.index_add_(0, keys, upstream.float()).to(upstream.dtype), None
