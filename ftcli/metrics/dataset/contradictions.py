"""The same prompt with different answers: labels that contradict each other, or a free choice."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcli.data.example import Origin
from ftcli.metrics.dataset.row import DataRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGEST_BYTES = 8  # two of a million prompts are taken for one with a chance of 3 in 10^8
SHOWN = 3
ROWS_SHOWN = 3


@dataclass(frozen=True)
class Contradictions:
    """Prompts that are equal but for case and white space, with answers that are not."""

    prompts: int
    rows: int
    shown: tuple[tuple[Origin, ...], ...]
    """Rows of the first such prompts, a few of each."""


class SamePrompts:
    """Gathers digests of prompts and answers: 24 bytes a row."""

    def __init__(self) -> None:
        self._prompts, self._answers = array("Q"), array("Q")
        self._lines, self._files = array("i"), array("i")
        self._names: dict[str, int] = {}

    def add(self, row: DataRow) -> None:
        turns = (f"{turn.role}\0{_plain(turn.content)}" for turn in row.messages[:-1])
        self._prompts.append(_digest("\0".join(turns)))
        self._answers.append(_digest(_plain(row.answer)))
        self._lines.append(row.origin.line)
        self._files.append(self._names.setdefault(row.origin.file, len(self._names)))

    def found(self) -> Contradictions:
        if not self._prompts:
            return Contradictions(0, 0, ())
        import numpy

        prompts, answers = (numpy.asarray(each) for each in (self._prompts, self._answers))
        order = numpy.argsort(prompts, kind="stable")
        starts = numpy.flatnonzero(numpy.diff(prompts[order], prepend=~prompts[order[0]]))
        sizes = numpy.diff(starts, append=len(order))
        lowest, highest = (
            each.reduceat(answers[order], starts) for each in (numpy.minimum, numpy.maximum)
        )
        groups = numpy.flatnonzero(lowest != highest)
        # Named in the order of the file: a group by its first row.
        named = groups[numpy.argsort(order[starts[groups]])][:SHOWN]
        shown = tuple(
            tuple(self._origin(int(row)) for row in _few(order[s : s + n], answers))
            for s, n in zip(starts[named], sizes[named], strict=True)
        )
        return Contradictions(len(groups), int(sizes[groups].sum()), shown)

    def _origin(self, row: int) -> Origin:
        return Origin(list(self._names)[self._files[row]], self._lines[row])


def _few(rows: NDArray[Any], answers: NDArray[Any]) -> list[int]:
    """The first rows with answers of their own."""
    first: dict[int, int] = {}
    for row in rows:
        first.setdefault(int(answers[row]), int(row))
    return list(first.values())[:ROWS_SHOWN]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> int:
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES)
    return int.from_bytes(found.digest(), "big")
