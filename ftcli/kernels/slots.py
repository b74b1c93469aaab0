"""In which order the attention computes packed rows.

Segments with the same prefix and about the same length form a group, each padded to as many slots
as the longest has tokens. For matrix products the slots of a group are ordered head by head: one
gather brings a whole tensor into that order, and one brings it back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ftcli.data.tokenizing.prefix_tree import PrefixTree, Segment, Span
from ftcli.memory.activations import KEYS_ROUNDED

# A segment joins a group if it has so much of the longest one's length, up to so many slots.
LEAST_LENGTH = 0.8
MOST_SLOTS = 1024
# Most keys of a group: its own, and a copy of the prefix for each segment.
MOST_KEYS = 65_536

Made = TypeVar("Made")


@dataclass(frozen=True)
class SegmentGroup:
    """Segments with the same prefix, each in as many slots as the others."""

    prefix: tuple[Span, ...]
    first: int
    """Their first slot; the others follow, segment by segment."""
    count: int
    length: int
    """Slots of each."""

    @property
    def position(self) -> int:
        """Length of the prefix."""
        return sum(end - start for start, end in self.prefix)

    def own(self, rows: Tensor, heads: int) -> Tensor:
        """[rows, width] in the Order of so many heads → [count x heads, length, width], a view."""
        start = self.first * heads
        end = start + self.count * self.length * heads
        return rows[start:end].view(self.count * heads, self.length, -1)


@dataclass(frozen=True)
class Order:
    """Slots and heads as rows, group by group [segments, heads, slots]."""

    gather: Tensor
    """[slots x heads]: row of a tensor [tokens x heads, width] that comes there."""
    scatter: Tensor
    """[tokens x heads]: place of the row of each token and head."""
    padding: Tensor
    """Rows without a token."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Order of a forest's segments in the attention."""

    groups: tuple[SegmentGroup, ...]
    tokens: Tensor
    """[slots]: token of each slot. Padding repeats the segment's last token, after all that could
    see it."""
    slots: Tensor
    """[tokens]: slot of each token."""
    positions: Tensor
    """[tokens]: position of each token in its rows."""
    visible_until: Tensor
    """[tokens]: first token after a token that does not see it; all between see it."""
    _cache: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        parts = (self.tokens, self.slots, self.positions, self.visible_until)
        return Layout(self.groups, *(part.to(device) for part in parts))

    def cached(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns, computed once for all layers."""
        if key not in self._cache:
            self._cache[key] = make()
        made: Made = self._cache[key]
        return made

    def order(self, heads: int) -> Order:
        """For so many heads."""
        return self.cached(("order", heads), lambda: _order(self, heads))

    def causal_mask(self, n: int, groups: int, like: Tensor) -> Tensor:
        """[n x kv groups, n] for n queries and their own keys: minus infinity where a key comes
        after its query, else 0."""

        def make() -> Tensor:
            mask = like.new_full((n, n), -torch.inf).triu(1)
            return mask.repeat_interleave(groups, dim=0)

        return self.cached(("causal", n, groups, like.dtype), make)

    def window_mask(self, n: int, keys: int, groups: int, like: Tensor) -> Tensor:
        """[n x kv groups, keys] for n queries and the first keys: minus infinity where a key is
        before the query's window; the last key is so for the last query alone."""

        def make() -> Tensor:
            mask = like.new_full((n, keys), -torch.inf).tril(keys - n)
            return mask.repeat_interleave(groups, dim=0)

        return self.cached(("window", n, keys, groups, like.dtype), make)


def layout_of(forest: PrefixTree) -> Layout:
    """Group the segments of a forest."""
    alike: dict[tuple[Span, ...], list[Segment]] = {}
    for segment in forest.segments:
        alike.setdefault(segment.before, []).append(segment)
    groups: list[SegmentGroup] = []
    tokens: list[Tensor] = []
    slots = torch.empty(forest.tokens, dtype=torch.long)
    first = 0
    for before, segments in alike.items():
        for some in _of_like_length(segments):
            longest = _length(some[0])
            length = longest + -(some[0].position + longest) % KEYS_ROUNDED
            groups.append(SegmentGroup(before, first, len(some), length))
            for segment in some:
                offsets = torch.arange(length)
                tokens.append(segment.start + offsets.clamp(max=_length(segment) - 1))
                slots[segment.start : segment.end] = first + offsets[: _length(segment)]
                first += length
    return Layout(tuple(groups), torch.cat(tokens), slots, *_visibility(forest))


def _visibility(forest: PrefixTree) -> tuple[Tensor, Tensor]:
    """`positions` and `visible_until` of a Layout: a segment comes after its prefix, and before
    all that does not continue it."""
    positions, until = torch.empty((2, forest.tokens), dtype=torch.long)
    for segment in forest.segments:
        length = _length(segment)
        positions[segment.start : segment.end] = segment.position + torch.arange(length)
        for start, end in (*segment.before, (segment.start, segment.end)):
            until[start:end] = segment.end
    return positions, until


def _of_like_length(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The longest of each group first."""
    together: list[Segment] = []
    for segment in sorted(segments, key=_length, reverse=True):
        longest = _length(together[0]) if together else 0
        count = len(together) + 1
        too_short = _length(segment) < LEAST_LENGTH * longest
        too_many = count * longest > MOST_SLOTS
        too_many |= count * (segment.position + longest) > MOST_KEYS
        if together and (too_short or too_many):
            yield together
            together = []
        together.append(segment)
    yield together


def _length(segment: Segment) -> int:
    return segment.end - segment.start


def _order(layout: Layout, heads: int) -> Order:
    each = torch.arange(heads, device=layout.tokens.device)
    numbers = torch.arange(len(layout.tokens) * heads, device=each.device)
    rows = []  # of a slot, [slots, heads]
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
