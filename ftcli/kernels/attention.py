"""Attention over packed rows: a token sees what stands before it in its own row, and no neighbour.

Queries, keys and values are gathered into slots (`slots.py`), where the query heads that share
keys and values are rows of one matrix, and each block of queries is a product with the keys that
it may see. Beside queries, keys and values the shares of products of up to `KEPT_KEYS` keys are
kept for the backward pass: those of short rows, and of the first block of longer ones. Those of
the other blocks, which grow with the square of a row's length, are made again there. Plain products
of blocks are faster on a CPU than torch's fused kernel, whose backward pass is slow
(docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel

from ftcli.compat import attention_named, softmax_backward
from ftcli.kernels.autocast import autocast_type
from ftcli.kernels.flex import through_flex
from ftcli.kernels.slots import Layout, Siblings
from ftcli.memory.activations import KEPT_KEYS, KEYS_ROUNDED

NAME = "ftcli_packed"
# Slots of one product at most: with fewer, fewer scores of what comes after them are thrown away.
BLOCK = 192


@dataclass(frozen=True)
class Scores:
    """What a model does to its attention scores, and between which tokens it has any."""

    layout: Layout
    heads: int
    """Of keys and values."""
    share: int
    """Query heads that share each of them."""
    scale: float
    softcap: float | None
    window: int | None
    """A token sees so many positions, its own among them."""

    def keeps(self, shares: Tensor) -> bool:
        """Whether the backward pass is given them; a softcap's slope is made of what was before."""
        return self.softcap is None and shares.shape[-1] <= KEPT_KEYS


def kept_products(layout: Layout) -> int:
    """How many products of a query and a key are kept for the backward pass, of one query head."""
    return sum(
        group.count * (block.queries.stop - block.queries.start) * block.keys.stop
        for group in layout.groups
        for block in _blocks(group, window=None)
        if block.keys.stop <= KEPT_KEYS
    )


def packed_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Have the model's layers take an attention that wants a `layout`: on a CPU that of this file,
    on a card torch's flex attention."""
    return attention_named(model, NAME) if model.device.type == "cpu" else through_flex(model)


def attention_for(model: PreTrainedModel, layout: Layout | None) -> AbstractContextManager[None]:
    """`packed_attention` where rows are packed."""
    return packed_attention(model) if layout is not None else nullcontext()


def attend(  # noqa: PLR0913 - as transformers calls it
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, heads, tokens, width] → [1, tokens, heads, width]."""
    # Rotated queries and keys are fp32 under autocast, which casts what sdpa is given.
    kind = autocast_type(query) or value.dtype
    scores = Scores(
        layout,
        heads=key.shape[1],
        share=query.shape[1] // key.shape[1],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        window=sliding_window,
    )
    by_token = (tensor[0].transpose(0, 1).to(kind) for tensor in (query, key, value))
    attended: Tensor = _Packed.apply(*by_token, scores)
    return attended[None], None


AttentionInterface.register(NAME, attend)


class _Packed(torch.autograd.Function):
    """Attention of each group of segments.

    Shapes: query [tokens, heads, width], key and value [tokens, shared heads, width].
    """

    @staticmethod
    def forward(ctx, query, key, value, scores):  # type: ignore[no-untyped-def]
        by_slot = [_by_slot(tensor, scores) for tensor in (query, key, value)]
        attended, kept = torch.empty_like(by_slot[0]), []
        for group in scores.layout.groups:
            whole = _whole(group, by_slot, (key, value), scores)
            found = group.own(attended, scores.heads)
            for block in _blocks(group, scores.window):
                parts = block.of(whole)
                shares = _scored(parts, scores)[0].softmax(dim=-1)
                found[:, block.queries] = _attention(shares, parts)
                kept.append(shares if scores.keeps(shares) else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scores = scores
        return _by_token(attended, query, scores)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        tensors, scores = ctx.saved_tensors, ctx.scores
        saved, kept = tensors[:3], iter(tensors[3:])
        by_slot = [_by_slot(tensor, scores) for tensor in saved]
        wanted = _by_slot(upstream, scores)
        wanted.index_fill_(0, scores.layout.order(scores.heads).filled, 0)
        own = [torch.empty_like(tensor) for tensor in by_slot]
        before = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in saved[1:]]
        for group in scores.layout.groups:
            whole = _whole(group, by_slot, saved[1:], scores)
            wanted_of_group = group.own(wanted, scores.heads)
            found = _gradients_of_group(group, whole, wanted_of_group, kept, scores)
            for total, part in zip(own, found, strict=True):
                group.own(total, scores.heads).copy_(part[:, -group.length :])
            for total, part in zip(before, found[1:], strict=True):
                _add_before(group, total, part[:, : group.position])
        of_query, *of_row = (
            _by_token(part, tensor, scores) for part, tensor in zip(own, saved, strict=True)
        )
        return of_query, *(a.add_(b) for a, b in zip(of_row, before, strict=True)), None


@dataclass(frozen=True)
class _Parts:
    """Some slots of the segments of a group, and what they may see.

    Shapes: query [segments x shared heads, n, share x width], key and value [segments x shared
    heads, m, width].
    """

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class _Block:
    """Some slots of each segment, and the keys of its row among which are those they may see."""

    queries: slice
    keys: slice

    def of(self, whole: _Parts) -> _Parts:
        """A view."""
        key, value = whole.key[:, self.keys], whole.value[:, self.keys]
        return _Parts(whole.query[:, self.queries], key, value)


def _blocks(group: Siblings, window: int | None) -> Iterator[_Block]:
    length, position = group.length, group.position
    start = 0
    while start < length:
        most = position + start + BLOCK
        end = min(length, most - most % KEYS_ROUNDED - position)
        seen = 0 if window is None else max(0, position + start - window + 1)
        yield _Block(slice(start, end), slice(seen - seen % KEYS_ROUNDED, position + end))
        start = end


def _by_slot(tensor: Tensor, scores: Scores) -> Tensor:
    """[tokens, heads, width] → [slots x shared heads, heads that share x width]."""
    rows = tensor.reshape(len(tensor) * scores.heads, -1)
    return rows.index_select(0, scores.layout.order(scores.heads).take)


def _by_token(rows: Tensor, like: Tensor, scores: Scores) -> Tensor:
    """The way back from `_by_slot`."""
    return rows.index_select(0, scores.layout.order(scores.heads).put).view(like.shape)


def _whole(
    group: Siblings, by_slot: Sequence[Tensor], by_token: Sequence[Tensor], scores: Scores
) -> _Parts:
    """All slots of a group, and keys and values with those that stand before its segments."""
    query, *rest = (group.own(tensor, scores.heads) for tensor in by_slot)
    if group.before:
        rest = [
            torch.cat((_before(group, tensor), own), dim=1)
            for tensor, own in zip(by_token, rest, strict=True)
        ]
    return _Parts(query, *rest)


def _before(group: Siblings, tensor: Tensor) -> Tensor:
    """Of [tokens, heads, width], for each segment of a group: [segments x heads, before, width]."""
    spans = torch.cat([tensor[start:end] for start, end in group.before])
    return spans.transpose(0, 1).repeat(group.count, 1, 1)


def _add_before(group: Siblings, total: Tensor, part: Tensor) -> None:
    """Add to [tokens, heads, width] what each segment gives back of `_before`."""
    if not group.before:
        return
    heads = total.shape[1]
    found = part.unflatten(0, (group.count, heads)).sum(dim=0).transpose(0, 1)
    for start, end in group.before:
        total[start:end] += found[: end - start]
        found = found[end - start :]


def _attention(shares: Tensor, parts: _Parts) -> Tensor:
    """Of the values by their shares [..., n x share, m], shaped as the query."""
    return torch.bmm(shares, parts.value).view(parts.query.shape)


def _gradients_of_group(
    group: Siblings, whole: _Parts, wanted: Tensor, kept: Iterator[Tensor | None], scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """By query, key and value of `whole`, whose attention has the gradient `wanted`; what several
    blocks add up is in fp32. Takes of `kept` one for each block."""
    blocks = list(_blocks(group, scores.window))
    if len(blocks) == 1 and not blocks[0].keys.start:
        return _gradients(whole, wanted, next(kept), scores)
    of_query = torch.empty_like(whole.query)
    of_row = [torch.zeros_like(part, dtype=torch.float32) for part in (whole.key, whole.value)]
    for block in blocks:
        found = _gradients(block.of(whole), wanted[:, block.queries], next(kept), scores)
        of_query[:, block.queries] = found[0]
        for total, part in zip(of_row, found[1:], strict=True):
            total[:, block.keys] += part
    return of_query, of_row[0], of_row[1]


def _gradients(
    parts: _Parts, wanted: Tensor, shares: Tensor | None, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """By query, key and value: what autograd would do, but without the output. Shares that were
    not kept are made again."""
    slope = None
    if shares is None:
        found, slope = _scored(parts, scores)
        shares = found.softmax(dim=-1)
    queries, upstream = _heads_as_rows(parts.query, scores), _heads_as_rows(wanted, scores)
    of_values = torch.bmm(shares.transpose(1, 2), upstream)
    of_shares = torch.bmm(upstream, parts.value.transpose(1, 2))
    of_scores = softmax_backward(of_shares, shares)
    if slope is not None:
        of_scores *= slope
    of_queries = torch.bmm(of_scores, parts.key).mul_(scores.scale)
    of_keys = torch.bmm(of_scores.transpose(1, 2), queries).mul_(scores.scale)
    return of_queries.view(parts.query.shape), of_keys, of_values


def _scored(parts: _Parts, scores: Scores) -> tuple[Tensor, Tensor | None]:
    """What the softmax is of, and its slope by the products where a softcap bends them."""
    queries, keys = _heads_as_rows(parts.query, scores), parts.key.transpose(1, 2)
    found = torch.baddbmm(queries.new_empty(1), queries, keys, beta=0, alpha=scores.scale)
    slope = None
    if scores.softcap is not None:
        bent = torch.tanh(found / scores.softcap)
        found, slope = bent * scores.softcap, 1 - bent**2
    _hide(found, parts.query.shape[1], scores)
    return found, slope


def _hide(found: Tensor, n: int, scores: Scores) -> None:
    """Set the scores [..., n x share, m] of the last n of m tokens to minus infinity where a key is
    behind its query or before its window."""
    m, share = found.shape[-1], scores.share
    found[..., m - n :] += scores.layout.behind(n, share, found)
    if scores.window is not None and m > scores.window:
        keys = m - scores.window
        found[..., :keys] += scores.layout.outside(n, keys, share, found)


def _heads_as_rows(query: Tensor, scores: Scores) -> Tensor:
    """[segments x shared heads, n, share x width] → [..., n x share, width], a view."""
    return query.view(len(query), query.shape[1] * scores.share, -1)
