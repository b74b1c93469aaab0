"""Order of packed rows in the attention.

Segments with the same prefix and similar lengths form a group, and are padded to the longest, so
that each has the same number of slots. For matrix products the slots of a group are ordered head by
head: one gather puts a tensor into that order, and another restores it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ftcli.data.tokenizing.prefix_tree import PrefixTree, Segment, Span
from ftcli.memory.activations.layers import KEYS_ROUNDED

# Least length of a segment in a group, relative to the longest.
LEAST_LENGTH = 0.8
# Of a group.
MOST_SLOTS = 1024
# Of a group, including a copy of the prefix for each segment.
MOST_KEYS = 65_536

Made = TypeVar("Made")


@dataclass(frozen=True)
class SegmentGroup:
    """Segments with the same prefix and the same number of slots."""

    prefix: tuple[Span, ...]
    first: int
    """First slot of the group; the others follow, segment by segment."""
    count: int
    """Segments."""
    length: int
    """Slots per segment."""

    @property
    def position(self) -> int:
        """Length of the prefix."""
        return sum(end - start for start, end in self.prefix)

    def own(self, rows: Tensor, heads: int) -> Tensor:
        """[rows, width] in the Order for `heads` → [count x heads, length, width], a view."""
        start = self.first * heads
        end = start + self.count * self.length * heads
        return rows[start:end].view(self.count * heads, self.length, -1)


@dataclass(frozen=True)
class Order:
    """Gather indices between tokens and slots; each group is ordered [segments, heads, slots]."""

    gather: Tensor
    """[slots x heads]: index into a tensor [tokens x heads, width]."""
    scatter: Tensor
    """[tokens x heads]: index into a tensor [slots x heads, width]."""
    padding: Tensor
    """Indices of slots without a token."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Order of a prefix tree's segments in the attention."""

    groups: tuple[SegmentGroup, ...]
    tokens: Tensor
    """[slots]: token of each slot; padding repeats the segment's last token."""
    slots: Tensor
    """[tokens]: slot of each token."""
    _cache: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)

    def cached(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The result of `make`, computed once for all layers."""
        if key not in self._cache:
            self._cache[key] = make()
        made: Made = self._cache[key]
        return made

    def order(self, heads: int) -> Order:
        return self.cached(("order", heads), lambda: _order(self, heads))

    def causal_mask(self, n: int, groups: int, like: Tensor) -> Tensor:
        """[n x kv groups, n] for n queries and their own keys: minus infinity if the key comes
        after the query, else 0."""

        def make() -> Tensor:
            mask = like.new_full((n, n), -torch.inf).triu(1)
            return mask.repeat_interleave(groups, dim=0)

        return self.cached(("causal", n, groups, like.dtype), make)

    def window_mask(self, n: int, keys: int, groups: int, like: Tensor) -> Tensor:
        """[n x kv groups, keys] for n queries and the first keys: minus infinity if the key is
        before the query's window. The last key is before the window of the last query only."""

        def make() -> Tensor:
            mask = like.new_full((n, keys), -torch.inf).tril(keys - n)
            return mask.repeat_interleave(groups, dim=0)

        return self.cached(("window", n, keys, groups, like.dtype), make)


def layout_of(tree: PrefixTree) -> Layout:
    """Group the segments of a prefix tree."""
    by_prefix: dict[tuple[Span, ...], list[Segment]] = {}
    for segment in tree.segments:
        by_prefix.setdefault(segment.before, []).append(segment)
    groups: list[SegmentGroup] = []
    tokens: list[Tensor] = []
    slots = torch.empty(tree.tokens, dtype=torch.long)
    first = 0
    for before, segments in by_prefix.items():
        for some in _similar_lengths(segments):
            longest = _length(some[0])
            length = longest + -(some[0].position + longest) % KEYS_ROUNDED
            groups.append(SegmentGroup(before, first, len(some), length))
            for segment in some:
                offsets = torch.arange(length)
                tokens.append(segment.start + offsets.clamp(max=_length(segment) - 1))
                slots[segment.start : segment.end] = first + offsets[: _length(segment)]
                first += length
    return Layout(tuple(groups), torch.cat(tokens), slots)


def _similar_lengths(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Groups of segments, the longest first."""
    group: list[Segment] = []
    for segment in sorted(segments, key=_length, reverse=True):
        longest = _length(group[0]) if group else 0
        count = len(group) + 1
        too_short = _length(segment) < LEAST_LENGTH * longest
        too_many = count * longest > MOST_SLOTS
        too_many |= count * (segment.position + longest) > MOST_KEYS
        if group and (too_short or too_many):
            yield group
            group = []
        group.append(segment)
    yield group


def _length(segment: Segment) -> int:
    return segment.end - segment.start


def _order(layout: Layout, heads: int) -> Order:
    each = torch.arange(heads, device=layout.tokens.device)
    numbers = torch.arange(len(layout.tokens) * heads, device=each.device)
    rows = []  # [slots, heads]
    for group in layout.groups:
        own = group.own(numbers[:, None], heads).view(group.count, heads, group.length)
        rows.append(own.transpose(1, 2).reshape(-1, heads))
    by_slot = torch.cat(rows)
    gather = torch.empty_like(numbers)
    gather[by_slot] = layout.tokens[:, None] * heads + each
    scatter = by_slot[layout.slots].flatten()
    padding = torch.ones_like(numbers, dtype=torch.bool)
    padding[scatter] = False
    return Order(gather, scatter, padding.nonzero()[:, 0])
