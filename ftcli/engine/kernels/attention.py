"""Attention over packed rows: a token sees what stands before it in its own row, and no neighbour.

Segments that continue the same tokens and are about as long go together, their queries in blocks:
in fp32 through torch's fused kernel, else through matrix products in which the query heads that
share keys and values are rows of one. Nothing is kept for the backward pass but queries, keys and
values: the scores are made again there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from ftcli.engine.kernels.switch import attention_named
from ftcli.engine.packing import Forest, Segment, Span

NAME = "ftcli_packed"
# Queries of one product: with fewer, fewer scores of what comes after them are thrown away.
BLOCK = 256
# Segments go together that fill so much of the longest, up to so many queries.
LEAST_FILLED = 0.8
MOST_QUERIES = 1024


@dataclass(frozen=True)
class Siblings:
    """Segments with the same tokens before them, each filled up to the longest."""

    before: tuple[Span, ...]
    places: Tensor
    """[segments, longest]: places in the packed sequence; what is filled up is a copy of the last
    token of its segment, which no other token of it sees."""
    filled: Tensor | None
    """[segments, longest]: what is filled up; None where nothing is."""

    def to(self, device: torch.device) -> Siblings:
        """The same on another device."""
        filled = self.filled.to(device) if self.filled is not None else None
        return Siblings(self.before, self.places.to(device), filled)

    @property
    def position(self) -> int:
        return sum(end - start for start, end in self.before)


Layout = tuple[Siblings, ...]


def layout_of(forest: Forest) -> Layout:
    """How the segments of a forest go through the attention."""
    alike: dict[tuple[Span, ...], list[Segment]] = {}
    for segment in forest.segments:
        alike.setdefault(segment.before, []).append(segment)
    return tuple(
        _siblings(before, some) for before, all_ in alike.items() for some in _of_like_length(all_)
    )


def _of_like_length(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    together: list[Segment] = []
    for segment in sorted(segments, key=lambda s: s.end - s.start, reverse=True):
        longest = together[0].end - together[0].start if together else 0
        too_short = segment.end - segment.start < LEAST_FILLED * longest
        if together and (too_short or (len(together) + 1) * longest > MOST_QUERIES):
            yield together
            together = []
        together.append(segment)
    yield together


def _siblings(before: tuple[Span, ...], segments: Sequence[Segment]) -> Siblings:
    starts = torch.tensor([[segment.start] for segment in segments])
    lengths = torch.tensor([[segment.end - segment.start] for segment in segments])
    offsets = torch.arange(int(lengths.max()))
    filled = offsets >= lengths
    places = starts + torch.minimum(offsets, lengths - 1)
    return Siblings(before, places, filled if bool(filled.any()) else None)


@dataclass(frozen=True)
class Scores:
    """What a model does to its attention scores."""

    scale: float
    softcap: float | None
    window: int | None
    """A token sees so many positions, its own among them."""


def packed_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Have the model's layers take the attention of this file, which wants a `layout`."""
    return attention_named(model, NAME)


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
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scale, softcap, sliding_window)
    kind = value.dtype
    # Rotated queries and keys are fp32 then; autocast casts what sdpa is given.
    if torch.is_autocast_enabled(query.device.type):
        kind = torch.get_autocast_dtype(query.device.type)
    by_token = (tensor[0].transpose(0, 1).to(kind) for tensor in (query, key, value))
    attended: Tensor = _Packed.apply(*by_token, layout, scores)
    return attended[None], None


AttentionInterface.register(NAME, attend)


class _Packed(torch.autograd.Function):
    """Attention of each group of segments, computed again in the backward pass.

    Shapes: query [tokens, heads, width], key and value [tokens, shared heads, width].
    """

    @staticmethod
    def forward(ctx, query, key, value, layout, scores):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scores = layout, scores
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in layout:
            queries = _own(group, query)
            keys, values = _row(group, key), _row(group, value)
            blocks = [
                _attention(
                    queries[:, :, b.queries], keys[:, :, b.keys], values[:, :, b.keys], scores
                )
                for b in _blocks(group, scores, query)
            ]
            _put(group, attended, torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0])
        return attended

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        saved = ctx.saved_tensors
        gradients = [
            torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in saved
        ]
        for group in ctx.layout:
            _add_gradients(group, saved, upstream, gradients, ctx.scores)
        return (*gradients, None, None)


def _add_gradients(
    group: Siblings,
    saved: Sequence[Tensor],
    upstream: Tensor,
    gradients: Sequence[Tensor],
    scores: Scores,
) -> None:
    query, key, value = saved
    wanted = _own(group, upstream)
    if group.filled is not None:
        wanted = wanted.masked_fill(group.filled[:, None, :, None], 0)
    whole = (_own(group, query), _row(group, key), _row(group, value))
    found = [torch.zeros_like(tensor) for tensor in whole]
    for block in _blocks(group, scores, query):
        places = (block.queries, block.keys, block.keys)
        parts = [tensor[:, :, place] for tensor, place in zip(whole, places, strict=True)]
        some = _gradients(parts, wanted[:, :, block.queries], scores)
        for total, place, part in zip(found, places, some, strict=True):
            total[:, :, place] += part
    _add_own(group, gradients[0], found[0])
    for total, row in zip(gradients[1:], found[1:], strict=True):
        _add_row(group, total, row)


@dataclass(frozen=True)
class _Block:
    """Some queries of each segment, and the keys of its row that they may see."""

    queries: slice
    keys: slice


def _blocks(group: Siblings, scores: Scores, query: Tensor) -> Iterator[_Block]:
    length, position, window = group.places.shape[1], group.position, scores.window
    # The fused kernel itself leaves out what stands above the diagonal, if it begins at its corner.
    whole = _through_sdpa(query, scores) and not position and window is None
    size = length if whole else BLOCK
    for start in range(0, length, size):
        end = min(start + size, length)
        seen = 0 if window is None else max(0, position + start - window + 1)
        yield _Block(slice(start, end), slice(seen, position + end))


def _own(group: Siblings, tensor: Tensor) -> Tensor:
    """[tokens, heads, width] → [segments, heads, longest, width]."""
    count, longest = group.places.shape
    found = tensor.index_select(0, group.places.flatten())
    return found.view(count, longest, *tensor.shape[1:]).transpose(1, 2)


def _row(group: Siblings, tensor: Tensor) -> Tensor:
    """As `_own`, with what stands before the segments: [segments, heads, row, width]."""
    own = _own(group, tensor)
    if not group.before:
        return own
    before = torch.cat([tensor[start:end] for start, end in group.before]).transpose(0, 1)
    return torch.cat((before.expand(len(own), -1, -1, -1), own), dim=2)


def _put(group: Siblings, tensor: Tensor, own: Tensor) -> None:
    """Write [segments, heads, longest, width] where the segments' tokens stand."""
    found = own.transpose(1, 2).flatten(0, 1)
    places = group.places.flatten()
    if group.filled is not None:
        real = ~group.filled.flatten()
        found, places = found[real], places[real]
    tensor.index_copy_(0, places, found)


def _add_own(group: Siblings, total: Tensor, own: Tensor) -> None:
    """Add gradients; what is filled up has none."""
    total.index_add_(0, group.places.flatten(), own.transpose(1, 2).flatten(0, 1))


def _add_row(group: Siblings, total: Tensor, row: Tensor) -> None:
    before = row[:, :, : group.position].sum(dim=0).transpose(0, 1)
    for start, end in group.before:
        total[start:end] += before[: end - start]
        before = before[end - start :]
    _add_own(group, total, row[:, :, group.position :])


def _attention(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    """Causal attention of the last n of m tokens to all that they may see.

    Shapes: query [rows, heads, n, width], key and value [rows, shared heads, m, width]; returns
    that of the query.
    """
    if _through_sdpa(query, scores):
        return _fused(query, key, value, scores)
    return _by_products(query, key, value, scores)


def _through_sdpa(query: Tensor, scores: Scores) -> bool:
    """torch's fused kernel: the faster one in fp32, where products in bf16 beat its backward pass
    (docs/performance.md); it has no softcap."""
    return query.dtype == torch.float32 and scores.softcap is None


def _fused(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    n, m = query.shape[2], key.shape[2]
    shares = query.shape[1] != key.shape[1]
    plain = n == m and (scores.window is None or m <= scores.window)
    mask = None if plain else _hidden(n, m, scores.window, query) == 0
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=plain, scale=scores.scale, enable_gqa=shares
    )


def _by_products(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    queries, keys, values = _by_shared_head(query, key, value, scores)
    found, _ = _scored(queries, keys, query, scores)
    shares = found.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.bmm(shares, values).view_as(query)


def _gradients(parts: Sequence[Tensor], wanted: Tensor, scores: Scores) -> list[Tensor]:
    """By query, key and value, of `_attention`, whose output has the gradient `wanted`."""
    if not _through_sdpa(parts[0], scores):
        return _gradients_by_products(parts, wanted, scores)
    parts = [part.detach().requires_grad_() for part in parts]
    with torch.enable_grad():
        attended = _fused(parts[0], parts[1], parts[2], scores)
    return list(torch.autograd.grad(attended, parts, wanted))


def _gradients_by_products(parts: Sequence[Tensor], wanted: Tensor, scores: Scores) -> list[Tensor]:
    """What autograd would do with `_by_products`, without making its output again."""
    query, key, value = parts
    queries, keys, values = _by_shared_head(query, key, value, scores)
    found, slope = _scored(queries, keys, query, scores)
    shares = found.softmax(dim=-1, dtype=torch.float32)
    upstream = wanted.reshape(queries.shape)
    of_values = torch.bmm(shares.to(value.dtype).transpose(1, 2), upstream)
    of_shares = torch.bmm(upstream, values.transpose(1, 2)).float()
    of_scores = torch._softmax_backward_data(of_shares, shares, -1, torch.float32).to(value.dtype)
    if slope is not None:
        of_scores *= slope
    of_queries = torch.bmm(of_scores, keys).mul_(scores.scale)
    of_keys = torch.bmm(of_scores.transpose(1, 2), queries)
    return [of_queries.view(query.shape), of_keys.view(key.shape), of_values.view(value.shape)]


def _by_shared_head(
    query: Tensor, key: Tensor, value: Tensor, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries [rows x shared heads, heads that share x n, width]; keys and values [rows x
    shared heads, m, width]."""
    shared, m, width = key.shape[1:]
    queries = (query * scores.scale).reshape(len(query) * shared, -1, width)
    return queries, key.reshape(-1, m, width), value.reshape(-1, m, width)


def _scored(
    queries: Tensor, keys: Tensor, query: Tensor, scores: Scores
) -> tuple[Tensor, Tensor | None]:
    """What the softmax is of, and its slope by the products where a softcap bends them."""
    n, m = query.shape[2], keys.shape[1]
    hidden = _hidden(n, m, scores.window, query).repeat(queries.shape[1] // n, 1)
    if scores.softcap is None:
        return torch.baddbmm(hidden, queries, keys.transpose(1, 2)), None
    bent = torch.tanh(torch.bmm(queries, keys.transpose(1, 2)) / scores.softcap)
    return bent * scores.softcap + hidden, 1 - bent**2


def _hidden(n: int, m: int, window: int | None, like: Tensor) -> Tensor:
    """[n, m]: minus infinity where a key is behind its query or before the window, else 0."""
    after = like.new_full((n, m), -torch.inf).triu(m - n + 1)
    if window is None or m <= window:
        return after
    return after + like.new_full((n, m), -torch.inf).tril(m - n - window)
