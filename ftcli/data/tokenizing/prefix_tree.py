"""Prefix tree of a micro-batch: rows without padding, common prefixes stored once.

With causal attention a token's values do not depend on what follows it. So rows with a common
prefix can share its values, and its gradients add up. The rows form a tree of prefixes; a segment
is a stretch of tokens that the same rows share.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

# A shorter common prefix does not get a segment of its own.
SHARED_TOKENS = 8

Span = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a packed sequence, and the tokens before them in their rows."""

    start: int
    end: int
    position: int
    """Number of tokens before them."""
    before: tuple[Span, ...]
    """Spans of these in the packed sequence, in order."""


@dataclass(frozen=True)
class PrefixTree:
    """Segments in packed order, and the spans of each row."""

    segments: tuple[Segment, ...]
    rows: tuple[tuple[Span, ...], ...]
    """Spans of the packed sequence, for each row in the order given."""

    @property
    def tokens(self) -> int:
        return self.segments[-1].end


def build_prefix_tree(rows: Sequence[Sequence[int]], *, share: bool) -> PrefixTree:
    """The tree of these rows of token ids; without `share`, each row is its own segment."""
    builder = _Builder([rows[row] for row in prefix_order(rows)] if share else list(rows))
    builder.commons = _common_lengths(builder.rows) if share else [0] * (len(rows) - 1)
    builder.grow(0, len(rows) - 1, 0, ())
    order = prefix_order(rows) if share else range(len(rows))
    spans = dict(zip(order, builder.spans, strict=True))
    return PrefixTree(tuple(builder.segments), tuple(spans[row] for row in range(len(rows))))


def rounded(tree: PrefixTree, multiple: int, most: int | None) -> PrefixTree:
    """The tree padded at its end to a multiple of `multiple` tokens, but at most to `most`.

    The added tokens belong to no row, and change nothing before them.
    """
    *others, last = tree.segments
    more = -tree.tokens % multiple
    if most is not None:
        more = min(more, max(0, most - tree.tokens))
    return replace(tree, segments=(*others, replace(last, end=last.end + more)))


def prefix_order(rows: Sequence[Sequence[int]]) -> list[int]:
    """Indices of the rows, sorted so that common prefixes are next to each other."""
    return sorted(range(len(rows)), key=lambda row: list(rows[row]))


def split_by_tokens(
    rows: Sequence[Sequence[int]], tokens: int, most: int, *, share: bool
) -> list[list[int]]:
    """Indices of rows in as few parts as possible, each of `tokens` packed tokens and `most` rows.

    A longer row is a part of its own. Parts are as even as the rows allow.
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
    """Median length of the prefix that a row shares with its neighbour in a sorted step."""
    found: list[int] = []
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        found += _common_lengths([some[place] for place in prefix_order(some)])
    return int(np.median(found)) if found else 0


def _common_lengths(rows: Sequence[Sequence[int]]) -> list[int]:
    """Length of the prefix that each row but the first shares with the one before it."""
    return [common_tokens(one, other) for one, other in pairwise(rows)]


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
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
        """Add rows `first` to `last`, whose first `depth` tokens are in `before` already."""
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
        """Add a segment of tokens `depth` to `end`, if any; returns the spans up to its end."""
        if end == depth:
            return before
        start = self.segments[-1].end if self.segments else 0
        self.segments.append(Segment(start, start + end - depth, depth, before))
        return (*before, (start, start + end - depth))
