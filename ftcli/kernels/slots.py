"""Where the tokens of packed rows stand while the attention works on them.

Segments that continue the same tokens and are about as long go together, each in as many slots as
the longest has tokens. For matrix products the slots of a group come head by head: one gather
brings a whole tensor into that order, and one brings it back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ftcli.data.tokenizing.packing import Forest, Segment, Span
from ftcli.memory.activations import KEYS_ROUNDED

# Segments go together that fill so much of the longest, up to so many slots.
LEAST_FILLED = 0.8
MOST_SLOTS = 1024
# Copies of what stands before the segments of a group, and their own, up to so many.
MOST_KEYS = 65_536

Made = TypeVar("Made")


@dataclass(frozen=True)
class Siblings:
    """Segments with the same tokens before them, each in as many slots as the others."""

    before: tuple[Span, ...]
    first: int
    """Their first slot; the others follow, segment by segment."""
    count: int
    length: int
    """Slots of each."""

    @property
    def position(self) -> int:
        """How many tokens stand before them."""
        return sum(end - start for start, end in self.before)

    def own(self, rows: Tensor, heads: int) -> Tensor:
        """[rows, width] in an Order of so many heads → [count x heads, length, width], a view."""
        start = self.first * heads
        end = start + self.count * self.length * heads
        return rows[start:end].view(self.count * heads, self.length, -1)


@dataclass(frozen=True)
class Order:
    """Slots and heads as rows: group by group [segments, heads, slots]."""

    take: Tensor
    """[slots x heads]: which row of a tensor [tokens x heads, width] comes there."""
    put: Tensor
    """[tokens x heads]: where the row of each token and head is."""
    filled: Tensor
    """The rows that no token is in."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How the segments of a forest go through the attention."""

    groups: tuple[Siblings, ...]
    places: Tensor
    """[slots]: the token of each. Where a segment is filled up it is the last of its tokens again,
    which no other token of it sees."""
    slots: Tensor
    """[tokens]: the slot of each."""
    positions: Tensor
    """[tokens]: the place of each in its rows."""
    seen_until: Tensor
    """[tokens]: the token behind the last one that sees it; those between see it, too."""
    _made: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        parts = (self.places, self.slots, self.positions, self.seen_until)
        return Layout(self.groups, *(part.to(device) for part in parts))

    def made_once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, for all layers."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def order(self, heads: int) -> Order:
        """For so many heads."""
        return self.made_once(("order", heads), lambda: _order(self, heads))

    def behind(self, n: int, share: int, like: Tensor) -> Tensor:
        """[n x share, n], by n queries and their own keys: minus infinity where a key is behind its
        query, else 0."""

        def make() -> Tensor:
            mask = like.new_full((n, n), -torch.inf).triu(1)
            return mask.repeat_interleave(share, dim=0)

        return self.made_once(("behind", n, share, like.dtype), make)

    def outside(self, n: int, keys: int, share: int, like: Tensor) -> Tensor:
        """[n x share, keys], by n queries and the first keys there are: minus infinity where a key
        is before the query's window, as the last of them is for the last query alone."""

        def make() -> Tensor:
            mask = like.new_full((n, keys), -torch.inf).tril(keys - n)
            return mask.repeat_interleave(share, dim=0)

        return self.made_once(("outside", n, keys, share, like.dtype), make)


def layout_of(forest: Forest) -> Layout:
    """How the segments of a forest go through the attention."""
    alike: dict[tuple[Span, ...], list[Segment]] = {}
    for segment in forest.segments:
        alike.setdefault(segment.before, []).append(segment)
    groups: list[Siblings] = []
    places: list[Tensor] = []
    slots = torch.empty(forest.tokens, dtype=torch.long)
    first = 0
    for before, segments in alike.items():
        for some in _of_like_length(segments):
            longest = _length(some[0])
            length = longest + -(some[0].position + longest) % KEYS_ROUNDED
            groups.append(Siblings(before, first, len(some), length))
            for segment in some:
                offsets = torch.arange(length)
                places.append(segment.start + offsets.clamp(max=_length(segment) - 1))
                slots[segment.start : segment.end] = first + offsets[: _length(segment)]
                first += length
    return Layout(tuple(groups), torch.cat(places), slots, *_sight(forest))


def _sight(forest: Forest) -> tuple[Tensor, Tensor]:
    """Positions, and until where each token is seen, both [tokens]: segments stand behind those
    that they continue, and before all that does not."""
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
        too_short = _length(segment) < LEAST_FILLED * longest
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
    each = torch.arange(heads, device=layout.places.device)
    numbers = torch.arange(len(layout.places) * heads, device=each.device)
    rows = []  # of a slot, [slots, heads]
    for group in layout.groups:
        own = group.own(numbers[:, None], heads).view(group.count, heads, group.length)
        rows.append(own.transpose(1, 2).reshape(-1, heads))
    by_slot = torch.cat(rows)
    take = torch.empty_like(numbers)
    take[by_slot] = layout.places[:, None] * heads + each
    put = by_slot[layout.slots].flatten()
    filled = torch.ones_like(numbers, dtype=torch.bool)
    filled[put] = False
    return Order(take, put, filled.nonzero()[:, 0])
