"""General rows that are replayed beside the task's: which of a source, and in which order.

The order is that of a hash of each row's content with the seed: the same rows are drawn whatever
their order in the file, and a greater share adds to what a smaller one draws.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Container, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from ftcli.data.example import Example
from ftcli.data.reading import read_examples
from ftcli.data.row import Reject
from ftcli.errors import DataError
from ftcli.recipe import Data, Replay


@dataclass(frozen=True)
class Drawing:
    """What is known of a source once all of its rows have been read."""

    replay: Replay
    base: Path
    order: array[int]
    """Numbers of the readable rows that may be drawn, counted from 0, the first to be drawn
    first."""
    rows_read: int
    rejected: int
    """Rows that cannot be read."""
    first_rejected: Reject | None
    duplicates: int
    held_out: int
    """Rows left out because they ask what a row held out of the task's asks."""

    def rows(self, numbers: Set[int]) -> Iterator[Example]:
        """The readable rows with these numbers, in the order of the file."""
        index = 0
        for item in replayed_examples(self.replay, self.base):
            if isinstance(item, Example):
                if index in numbers:
                    yield item
                index += 1


def replayed_examples(replay: Replay, base: Path) -> Iterator[Example | Reject]:
    """Every row of the source, read by its own columns and without the task's system prompt.

    Raises DataError as `read_examples`; where the hub was asked for it, with code `replay`.
    """
    try:
        yield from read_examples(replay.source, Data(train=replay.source), base)
    except DataError as error:
        if error.code.startswith("hub_"):
            raise DataError("replay", error.message, file=error.file) from error
        raise


def look_through(
    replay: Replay, base: Path, seed: int, held_out: Container[bytes], step: Callable[[], None]
) -> Drawing:
    """Read all rows of the source once; `held_out` are question digests (`Example`).

    `step` is called for each row.
    """
    digests: dict[bytes, int] = {}
    readable = rejected = duplicates = left_out = 0
    first = None
    for item in replayed_examples(replay, base):
        step()
        if isinstance(item, Reject):
            rejected, first = rejected + 1, first or item
            continue
        digest = item.digest()
        if item.question_digest() in held_out:
            left_out += 1
        elif digest in digests:
            duplicates += 1
        else:
            digests[digest] = readable
        readable += 1
    first_drawn = sorted(digests, key=lambda digest: _place(seed, digest))
    return Drawing(
        replay,
        base,
        order=array("q", (digests[digest] for digest in first_drawn)),
        rows_read=readable + rejected,
        rejected=rejected,
        first_rejected=first,
        duplicates=duplicates,
        held_out=left_out,
    )


def _place(seed: int, digest: bytes) -> bytes:
    return hashlib.sha256(b"replay %d:" % seed + digest).digest()


def rows_wanted(share: float, task_rows: int) -> int:
    """Rows to replay so that they are this share of all rows: 0.15 beside 1,000 are 176."""
    return max(1, round(task_rows * share / (1 - share)))
