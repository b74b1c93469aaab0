"""Which rows are held out, decided by their content and not by their place in the file.

Rows with the same prompt stay on one side, so that nothing held out was seen in training. Groups
stand in the order of a hash with the seed: the same rows in another order are split alike, and new
rows leave most old ones where they were. Only digests are kept, 32 bytes a row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftcli.data.example import DIGEST_BYTES
from ftcli.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Codes = NDArray[Any]

Side = Literal["train", "validation", "test", "duplicate"]
SIDES: tuple[Side, ...] = ("train", "validation", "test", "duplicate")
# Digests are compared as texts of C, which makes nothing of zeros at their end: all are as long.
DIGEST = f"S{DIGEST_BYTES}"
PAIR = [("whole", DIGEST), ("prompt", DIGEST)]


class Digests:
    """Digests of examples and of their prompts, in reading order."""

    def __init__(self) -> None:
        self._pairs = bytearray()

    def __len__(self) -> int:
        return len(self._pairs) // (2 * DIGEST_BYTES)

    def add(self, whole: bytes, prompt: bytes) -> None:
        self._pairs += whole + prompt

    def pairs(self) -> Codes:
        """Records of `whole` and `prompt`, one an example."""
        import numpy

        return numpy.frombuffer(self._pairs, PAIR)


@dataclass(frozen=True)
class Split:
    """The side of each example, by its number in reading order."""

    codes: bytes
    """One byte an example: its side's place in SIDES."""

    def side(self, index: int) -> Side:
        """Side of the example with this number, counted from 0."""
        return SIDES[self.codes[index]]

    def rows(self, side: Side) -> int:
        """How many examples are on a side."""
        return self.codes.count(SIDES.index(side))


class Prompts:
    """The prompts of the rows on one side."""

    def __init__(self, digests: Digests, split: Split, side: Side) -> None:
        import numpy

        wanted = numpy.frombuffer(split.codes, numpy.uint8) == SIDES.index(side)
        self._sorted = numpy.unique(digests.pairs()["prompt"][wanted])

    def __contains__(self, digest: bytes) -> bool:
        place = int(self._sorted.searchsorted(digest))
        return place < len(self._sorted) and self._sorted[place] == digest.rstrip(b"\0")


def plan_split(
    digests: Digests, validation: float, test: float, seed: int, deduplicate: bool
) -> Split:
    """Sides of the examples.

    `validation` and `test` are shares of the rows that are no duplicates (below 1) or numbers of
    rows. A side takes whole groups of one prompt that fit into that number, the smallest group
    when none does; so it is never empty while there are groups to spare, and training always
    keeps one. Raises DataError (`data_split`) when the numbers leave nothing to train on.
    """
    import numpy

    pairs = digests.pairs()
    kept = numpy.ones(len(pairs), bool)
    if deduplicate:
        kept[:] = False
        kept[numpy.unique(pairs["whole"], return_index=True)[1]] = True
    codes = numpy.full(len(pairs), SIDES.index("duplicate"), numpy.uint8)
    prompts, group_of_row, sizes = numpy.unique(
        pairs["prompt"][kept], return_inverse=True, return_counts=True
    )
    codes[kept] = _sides_of_groups(prompts, sizes, validation, test, seed)[group_of_row]
    return Split(codes.tobytes())


def _sides_of_groups(
    prompts: Codes, sizes: Codes, validation: float, test: float, seed: int
) -> Codes:
    """For each prompt the place of its side in SIDES."""
    import numpy

    rows = int(sizes.sum())
    validation_rows, test_rows = _rows(validation, rows), _rows(test, rows)
    if rows and validation_rows + test_rows >= rows:
        raise DataError(
            "data_split",
            f"data.validation ({validation}) and data.test ({test}) ask for "
            f"{validation_rows + test_rows:g} of {rows} rows, which leaves none to train on",
        )
    codes = numpy.full(len(prompts), SIDES.index("train"), numpy.uint8)
    if validation_rows or test_rows:
        order = _hash_order(prompts, seed)
        # The test rows come first, so that another `validation` leaves them as they are.
        kept_back = 2 if validation else 1
        codes[_taken(order, sizes, test_rows, len(order) - kept_back)] = SIDES.index("test")
        rest = order[codes[order] == SIDES.index("train")]
        codes[_taken(rest, sizes, validation_rows, len(rest) - 1)] = SIDES.index("validation")
    return codes


def _rows(share_or_count: float, rows: int) -> float:
    return share_or_count * rows if share_or_count < 1 else share_or_count


def _hash_order(prompts: Codes, seed: int) -> Codes:
    """Numbers of the prompts, in the order of their hashes with the seed."""
    import numpy

    # numpy leaves out zeros at the end of what it gives back.
    whole = (prompt.ljust(DIGEST_BYTES, b"\0") for prompt in prompts)
    hashes = [hashlib.sha256(b"%d:" % seed + prompt).digest() for prompt in whole]
    return numpy.array(hashes, "S32").argsort(kind="stable")


def _taken(order: Codes, sizes: Codes, wanted_rows: float, most_groups: int) -> list[int]:
    """Groups from the front of `order` that fit into `wanted_rows`, or the smallest one."""
    taken: list[int] = []
    left_rows = round(wanted_rows)
    for group in order:
        if not left_rows or len(taken) >= most_groups:
            break
        if sizes[group] <= left_rows:
            taken.append(int(group))
            left_rows -= int(sizes[group])
    if wanted_rows and not taken and most_groups > 0:
        taken.append(int(order[sizes[order].argmin()]))
    return taken
