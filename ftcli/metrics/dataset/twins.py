"""Rows that nearly equal another: they teach nothing new, and flatter the score when held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcli.data.example import Origin
from ftcli.metrics.dataset.row import DataRow
from ftcli.metrics.dataset.shingles import Shingler, common_shingles, jaccard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ftcli.metrics.dataset.shingles import Shingles

    Sketch = NDArray[Any]

# From this Jaccard similarity on two rows are twins: one word in about thirty is another.
SIMILAR = 0.8
# Of 64 numbers a pair of that similarity has 51 in common, give or take 3.2; from 42 on, three
# deviations below, it is compared exactly. Of each number a byte is kept (b-bit minwise hashing,
# Li and König 2010): 20,000 rows are 1.3 MB, and a row is held against all of them at once.
NUMBERS, ENOUGH = 64, 42
SEED = 1
MOST_COMPARED = 20
SHOWN = 3
SHORT_ANSWER = 60  # characters: a label, a number, a name


@dataclass(frozen=True)
class Pair:
    """Two rows, and their Jaccard similarity."""

    first: Origin
    second: Origin
    similarity: float


@dataclass(frozen=True)
class NearDuplicates:
    """How many rows have a near twin among the training rows."""

    rows_looked_at: int
    """Training rows."""
    rows: int
    shown: tuple[Pair, ...]
    held_out_looked_at: int
    held_out_rows: int
    """Held-out rows that nearly equal a training row."""
    held_out_shown: tuple[Pair, ...]
    disagreeing: int
    """Twins with different short answers."""

    @property
    def share(self) -> float:
        return self.rows / max(self.rows_looked_at, 1)


@dataclass(frozen=True)
class _Leader:
    """The first row of its kind, which later ones are compared with."""

    origin: Origin
    shingles: Shingles
    answer: str | None
    """None: not short."""


class _Sketches:
    """Sketches of the leaders, one a column: a byte of each of their MinHash numbers."""

    def __init__(self) -> None:
        import numpy

        self._columns = numpy.empty((NUMBERS, 1024), numpy.uint8)
        self._count = 0

    def add(self, sketch: Sketch) -> None:
        import numpy

        if self._count == self._columns.shape[1]:
            self._columns = numpy.hstack([self._columns, numpy.empty_like(self._columns)])
        self._columns[:, self._count] = sketch
        self._count += 1

    def like(self, sketch: Sketch) -> list[int]:
        """Places of the sketches that have most in common with this one, if enough."""
        import numpy

        alike = self._columns[:, : self._count] == sketch[:, None]
        common = alike.view(numpy.uint8).sum(axis=0, dtype=numpy.uint8)
        places = numpy.flatnonzero(common >= ENOUGH)
        most = numpy.argsort(-common[places].astype(int), kind="stable")[:MOST_COMPARED]
        found: list[int] = places[most].tolist()
        return found


class Twins:
    """Compares each row with the training rows before it that equal none before them.

    Give it the training rows first. A row that is like a row that is like a third one counts as
    its twin where it is like the third one too.
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        """`prompts`: some of the rows', from which the instruction is learnt."""
        from datasketch import MinHash

        self._shingler = Shingler()
        self._common = common_shingles(prompts, self._shingler)
        self._hashed = MinHash(num_perm=NUMBERS, seed=SEED, hashfunc=int)
        self._sketches = _Sketches()
        self._leaders: list[_Leader] = []
        self._followed: set[int] = set()
        self._looked_at = {True: 0, False: 0}
        self._found = {True: 0, False: 0}
        self._shown: dict[bool, list[Pair]] = {True: [], False: []}
        self._disagreeing = 0

    def add(self, row: DataRow) -> None:
        """Training rows are compared and kept, held-out ones compared."""
        shingles = self._shingler.of(row, self._common)
        if not len(shingles):
            return
        self._looked_at[row.held_out] += 1
        self._hashed.clear()
        self._hashed.update_batch(shingles.tolist())
        sketch = self._hashed.hashvalues.astype("uint8")
        new = _Leader(row.origin, shingles, _short(row.answer))
        if not self._joined(new, sketch, row.held_out) and not row.held_out:
            self._sketches.add(sketch)
            self._leaders.append(new)

    def found(self) -> NearDuplicates:
        return NearDuplicates(
            rows_looked_at=self._looked_at[False],
            rows=self._found[False] + len(self._followed),
            shown=tuple(self._shown[False]),
            held_out_looked_at=self._looked_at[True],
            held_out_rows=self._found[True],
            held_out_shown=tuple(self._shown[True]),
            disagreeing=self._disagreeing,
        )

    def _joined(self, new: _Leader, sketch: Sketch, held_out: bool) -> bool:
        """Whether the row is a twin of a leader, and then counted."""
        for place in self._sketches.like(sketch):
            leader = self._leaders[place]
            similarity = jaccard(leader.shingles, new.shingles)
            if similarity < SIMILAR:
                continue
            self._found[held_out] += 1
            self._disagreeing += None not in (new.answer, leader.answer) and (
                new.answer != leader.answer
            )
            if len(self._shown[held_out]) < SHOWN:
                self._shown[held_out].append(Pair(leader.origin, new.origin, similarity))
            if not held_out:
                self._followed.add(place)
            return True
        return False


def _short(answer: str) -> str | None:
    plain = " ".join(answer.casefold().split())
    return plain if len(plain) <= SHORT_ANSWER else None
