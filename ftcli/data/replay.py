"""General rows that are replayed beside the task's: which of a source, and in which order.

The order is that of a hash of each row's content with the seed: the same rows are drawn whatever
their order in the file, and a greater share adds to what a smaller one draws. While they are read
24 bytes a row are kept, and 8 behind it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Container, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from ftcli.config.data import BUILTIN
from ftcli.config.recipe import Data, Replay
from ftcli.data.example import DIGEST_BYTES, Example
from ftcli.data.reading import read_examples
from ftcli.data.row import Reject
from ftcli.errors import DataError

BUILTIN_FILE = Path(__file__).with_name("builtin_replay.jsonl")


def replay_file(source: str) -> str:
    """Where the rows of a source are: a path, or a hub dataset id."""
    return str(BUILTIN_FILE) if source == BUILTIN else source


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
        source = replay_file(replay.source)
        for item in read_examples(source, Data(train=source), base):
            # As the recipe names it: no path of an installation.
            yield replace(item, origin=replace(item.origin, file=replay.source))
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
    may_be_drawn = _Readable()
    readable = rejected = left_out = 0
    first = None
    for item in replayed_examples(replay, base):
        step()
        if isinstance(item, Reject):
            rejected, first = rejected + 1, first or item
            continue
        if item.question_digest() in held_out:
            left_out += 1
        else:
            may_be_drawn.add(readable, item.digest())
        readable += 1
    order = may_be_drawn.order(seed)
    return Drawing(
        replay,
        base,
        order=order,
        rows_read=readable + rejected,
        rejected=rejected,
        first_rejected=first,
        duplicates=len(may_be_drawn) - len(order),
        held_out=left_out,
    )


class _Readable:
    """Rows by their number, each with the digest of its content."""

    def __init__(self) -> None:
        self._numbers, self._digests = array("q"), bytearray()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, digest: bytes) -> None:
        self._numbers.append(number)
        self._digests += digest

    def order(self, seed: int) -> array[int]:
        """Numbers in the order of their places; of rows with equal content, that of the first."""
        import numpy

        # Compared as texts of C, which makes nothing of zeros at their end: all are as long.
        digests = numpy.frombuffer(self._digests, f"S{DIGEST_BYTES}")
        first = numpy.unique(digests, return_index=True)[1]
        places = bytearray()
        for index in first:
            start = int(index) * DIGEST_BYTES
            places += _place(seed, bytes(self._digests[start : start + DIGEST_BYTES]))
        order = numpy.frombuffer(places, "S32").argsort(kind="stable")
        numbers = numpy.frombuffer(self._numbers, numpy.int64)[first[order]]
        return array("q", numbers.tobytes())


def _place(seed: int, digest: bytes) -> bytes:
    return hashlib.sha256(b"replay %d:" % seed + digest).digest()


def rows_wanted(share: float, task_rows: int) -> int:
    """Rows to replay so that they are this share of all rows: 0.15 beside 1,000 are 176."""
    return max(1, round(task_rows * share / (1 - share)))
