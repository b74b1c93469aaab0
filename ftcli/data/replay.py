"""Replay: which rows of a general source may be trained on with the task's, and in which order.

Rows are drawn in the order of a hash of their content with the seed: their order in the file does
not matter, and a larger ratio draws the rows of a smaller one and more. Memory: 24 bytes per row
while the source is read, 8 afterwards.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Container, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from ftcli.config.data import BUILTIN
from ftcli.config.recipe import Data, Replay
from ftcli.data.example import DIGEST_BYTES, Example, RejectedRow
from ftcli.data.sources import read_examples
from ftcli.errors import DataError
from ftcli.shell import shown_source

BUILTIN_FILE = Path(__file__).with_name("builtin_replay.jsonl")


def replay_file(source: str) -> str:
    """Path or hub dataset id of a source."""
    return str(BUILTIN_FILE) if source == BUILTIN else source


@dataclass(frozen=True)
class ReplaySource:
    """A source after its first reading: which rows may be drawn, and in which order."""

    replay: Replay
    order: array[int]
    """Numbers (from 0) of the readable rows that may be drawn, in sampling order."""
    rows_read: int
    rejected: int
    """Rows that cannot be read."""
    first_rejected: RejectedRow | None
    duplicates: int
    held_out: int
    """Rows left out because a held-out row of the task has the same question."""

    def rows(self, numbers: Set[int]) -> Iterator[Example]:
        """The readable rows with these numbers, in the order of the file."""
        index = 0
        for item in replayed_examples(self.replay):
            if isinstance(item, Example):
                if index in numbers:
                    yield item
                index += 1


def replayed_examples(replay: Replay) -> Iterator[Example | RejectedRow]:
    """Every row of the source, read by its own columns and without the task's system prompt.

    Raises DataError as `read_examples`, but errors of the hub with code `replay`.
    """
    try:
        source = replay_file(replay.source)
        for item in read_examples(source, Data(train=source)):
            # `builtin`, as in the recipe, and not a path of the installation.
            yield replace(item, origin=replace(item.origin, file=shown_source(replay.source)))
    except DataError as error:
        if error.code.startswith("hub_"):
            raise DataError("replay", error.message, file=error.file) from error
        raise


def read_source(
    replay: Replay, seed: int, held_out: Container[bytes], step: Callable[[], None]
) -> ReplaySource:
    """Read all rows of the source once, calling `step` for each.

    `held_out`: question digests (`Example`) of the task's held-out rows.
    """
    numbers, digests = array("q"), bytearray()
    readable = rejected = left_out = 0
    first = None
    for item in replayed_examples(replay):
        step()
        if isinstance(item, RejectedRow):
            rejected, first = rejected + 1, first or item
            continue
        if item.question_digest() in held_out:
            left_out += 1
        else:
            numbers.append(readable)
            digests += item.digest()
        readable += 1
    order = _sampling_order(numbers, digests, seed)
    return ReplaySource(
        replay,
        order=order,
        rows_read=readable + rejected,
        rejected=rejected,
        first_rejected=first,
        duplicates=len(numbers) - len(order),
        held_out=left_out,
    )


def _sampling_order(numbers: array[int], digests: bytearray, seed: int) -> array[int]:
    """Numbers by the hash of their digest; of rows with equal content, only the first."""
    import numpy

    # numpy ignores trailing zero bytes, which is safe here: all digests have one length.
    first = numpy.unique(numpy.frombuffer(digests, f"S{DIGEST_BYTES}"), return_index=True)[1]
    places = bytearray()
    for index in first:
        start = int(index) * DIGEST_BYTES
        places += _place(seed, bytes(digests[start : start + DIGEST_BYTES]))
    order = numpy.frombuffer(places, "S32").argsort(kind="stable")
    return array("q", numpy.frombuffer(numbers, numpy.int64)[first[order]].tobytes())


def _place(seed: int, digest: bytes) -> bytes:
    return hashlib.sha256(b"replay %d:" % seed + digest).digest()
