"""Which prompts are answered together: those that begin alike, of like length, within a room."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ftcli.engine.packing import SHARED_TOKENS, alike, common_tokens

# A batch of its own costs about as much as prefilling so many tokens: its steps read the weights
# anew, 100 times or more, each time as long as 10 to 20 tokens take (measured on a CPU).
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Room:
    """What a batch may take."""

    rows: int
    tokens: int
    """Of cache, answers of full length among them."""


def together(prompts: Sequence[Sequence[int]], new_tokens: int, room: Room) -> list[list[int]]:
    """Places of prompts in batches, all of them once; the longest prompts of a batch first."""
    batches = []
    for family in _families(prompts):
        family.sort(key=lambda place: len(prompts[place]), reverse=True)
        lengths = [len(prompts[place]) for place in family]
        shared = common_start([prompts[place] for place in family])
        parts = _evenly(lengths, shared, new_tokens, room)
        batches += [[family[place] for place in part] for part in parts]
    return sorted(batches, key=lambda batch: len(prompts[batch[0]]), reverse=True)


def _evenly(lengths: Sequence[int], shared: int, new_tokens: int, room: Room) -> list[list[int]]:
    """As few parts as have room, of as few rows each as those allow: none is a small rest."""

    def parts(rows: int) -> list[list[int]]:
        return _cut(lengths, shared, new_tokens, replace(room, rows=rows))

    fewest = len(parts(room.rows))
    return parts(1 + bisect_left(range(1, room.rows), True, key=lambda n: len(parts(n)) <= fewest))


def _cut(lengths: Sequence[int], shared: int, new_tokens: int, room: Room) -> list[list[int]]:
    """Places of rows of these lengths, the longest first, in parts that have room."""
    parts: list[list[int]] = []
    most = 0
    for place, length in enumerate(lengths):
        if not parts or len(parts[-1]) == most:
            parts.append([])
            own = length - shared + new_tokens
            most = min(room.rows, max(1, (room.tokens - shared) // own))
        parts[-1].append(place)
    return parts


def _families(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of prompts that begin alike, where computing that once outweighs more batches."""
    order = alike(prompts)
    commons = [common_tokens(prompts[a], prompts[b]) for a, b in pairwise(order)]
    families: list[list[int]] = []

    def join(first: int, last: int) -> tuple[list[int], int]:
        """Of these places those that are in no family yet, and what they have in common."""
        if first == last:
            return [order[first]], len(prompts[order[first]])
        least, start = min(commons[first:last]), first
        joined: list[int] = []
        for place in range(first, last + 1):
            if place == last or commons[place] - least < SHARED_TOKENS:
                some, common = join(start, place)
                if (common - least) * (len(some) - 1) < BATCH_TOKENS:
                    joined += some
                else:
                    families.append(some)
                start = place + 1
        return joined, least

    rest, _ = join(0, len(order) - 1)
    return [family for family in (rest, *families) if family]


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with; each keeps one of its own, and one keeps all."""
    if len(prompts) == 1:
        return 0
    rows = [list(prompt) for prompt in prompts]
    common = min(common_tokens(min(rows), max(rows)), min(map(len, rows)) - 1)
    return common if common >= SHARED_TOKENS else 0
