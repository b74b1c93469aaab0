"""Rows of a micro-batch without padding, common prefixes stored once.

Causal attention gives a token the same values whatever follows it. So rows with a common prefix
share its values, and its gradients add up. Together the rows are a tree of prefixes, whose segments
are what some rows share and others do not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

# Fewer tokens in common are not worth a segment of their own.
SHARED_TOKENS = 8

Span = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a packed sequence, and what stands before them in their rows."""

    start: int
    end: int
    position: int
    """How many tokens stand before them."""
    before: tuple[Span, ...]
    """Where those are in the packed sequence, first to last."""


@dataclass(frozen=True)
class PrefixTree:
    """Segments in the order in which they stand, and where the tokens of each row are."""

    segments: tuple[Segment, ...]
    rows: tuple[tuple[Span, ...], ...]
    """Spans of the packed sequence, for each row as it was given."""

    @property
    def tokens(self) -> int:
        return self.segments[-1].end


def build_prefix_tree(rows: Sequence[Sequence[int]], *, share: bool) -> PrefixTree:
    """The tree of these rows of token ids; without `share`, each row is a segment of its own."""
    builder = _Builder([rows[row] for row in prefix_order(rows)] if share else list(rows))
    builder.commons = _common_lengths(builder.rows) if share else [0] * (len(rows) - 1)
    builder.grow(0, len(rows) - 1, 0, ())
    order = prefix_order(rows) if share else range(len(rows))
    spans = dict(zip(order, builder.spans, strict=True))
    return PrefixTree(tuple(builder.segments), tuple(spans[row] for row in range(len(rows))))


def rounded(tree: PrefixTree, multiple: int, most: int | None) -> PrefixTree:
    """The tree with a longer last segment: its tokens are a multiple of so many, or `most`.

    The added tokens belong to no row, and tokens that follow change nothing before them.
    """
    *others, last = tree.segments
    more = -tree.tokens % multiple
    if most is not None:
        more = min(more, max(0, most - tree.tokens))
    return replace(tree, segments=(*others, replace(last, end=last.end + more)))


def prefix_order(rows: Sequence[Sequence[int]]) -> list[int]:
    """Places of the rows, those with common prefixes next to each other."""
    return sorted(range(len(rows)), key=lambda row: list(rows[row]))


def split_by_tokens(
    rows: Sequence[Sequence[int]], tokens: int, most: int, *, share: bool
) -> list[list[int]]:
    """Places of rows in as few parts as hold about `tokens` packed tokens and `most` rows each.

    A row that is longer is a part of its own. Parts are as even as rows allow.
    """
    order = prefix_order(rows) if share else list(range(len(rows)))
    ordered = [rows[row] for row in order]
    lengths = [len(row) for row in ordered]
    commons = [0, *(_common_lengths(ordered) if share else [0] * (len(rows) - 1))]
    shared = [common if common >= SHARED_TOKENS else 0 for common in commons]

    def parts(cap: int) -> list[list[int]]:
        found: list[list[int]] = []
        taken = 0
        for place, row in enumerate(order):
            more = lengths[place] - shared[place]
            if not found or taken + more > cap or len(found[-1]) == most:
                found.append([])
                taken, more = 0, lengths[place]
            found[-1].append(row)
            taken += more
        return found

    fewest = len(parts(tokens))
    even = bisect_left(range(tokens), True, key=lambda cap: len(parts(cap)) <= fewest)
    return parts(even)


def typical_common_prefix(rows: Sequence[Sequence[int]], step: int = 16) -> int:
    """How many tokens a row usually has in common with the one most like it in its step."""
    found: list[int] = []
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        found += _common_lengths([some[place] for place in prefix_order(some)])
    return int(np.median(found)) if found else 0


def _common_lengths(rows: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens each row but the first has in common with the one before it."""
    return [common_tokens(one, other) for one, other in pairwise(rows)]


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = np.asarray(one[:length]) != np.asarray(other[:length])
    return int(differ.argmax()) if differ.any() else length


@dataclass
class _Builder:
    """Builds the tree of sorted rows."""

    rows: Sequence[Sequence[int]]
    commons: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    spans: list[tuple[Span, ...]] = field(default_factory=list)

    def grow(self, first: int, last: int, depth: int, before: tuple[Span, ...]) -> None:
        """Rows from `first` to `last`, whose first `depth` tokens stand in `before` already."""
        if first == last:
            self.spans.append(self._add(len(self.rows[first]), depth, before))
            return
        common = min(self.commons[first:last])
        if common - depth >= SHARED_TOKENS:
            before, depth = self._add(common, depth, before), common
        start = first
        for place in range(first, last + 1):
            if place == last or self.commons[place] - depth < SHARED_TOKENS:
                self.grow(start, place, depth, before)
                start = place + 1

    def _add(self, end: int, depth: int, before: tuple[Span, ...]) -> tuple[Span, ...]:
        """A segment of the tokens from `depth` to `end`, if any; the spans up to its end."""
        if end == depth:
            return before
        start = self.segments[-1].end if self.segments else 0
        self.segments.append(Segment(start, start + end - depth, depth, before))
        return (*before, (start, start + end - depth))
