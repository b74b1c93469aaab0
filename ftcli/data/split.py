"""Which rows are held out, decided by their content and not by their place in the file.

Rows with the same prompt stay on one side, so that nothing held out was seen in training. Groups
stand in the order of a hash with the seed: the same rows in another order are split alike, and new
rows leave most old ones where they were. Only digests are kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from ftcli.data.example import Example, Origin
from ftcli.errors import DataError

Side = Literal["train", "validation", "test", "duplicate"]
SIDES: tuple[Side, ...] = ("train", "validation", "test", "duplicate")


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


def plan_split(
    digests: Iterable[tuple[bytes, bytes]],
    validation: float,
    test: float,
    seed: int,
    deduplicate: bool,
) -> Split:
    """Sides of the examples that are given as (digest, prompt digest) in reading order.

    `validation` and `test` are shares of the rows that are no duplicates (below 1) or numbers of
    rows. A side takes whole groups of one prompt that fit into that number, the smallest group
    when none does; so it is never empty while there are groups to spare, and training always
    keeps one. Raises DataError (`data_split`) when the numbers leave nothing to train on.
    """
    prompts: list[bytes | None] = []
    seen: set[bytes] = set()
    for digest, prompt in digests:
        prompts.append(None if digest in seen else prompt)
        if deduplicate:
            seen.add(digest)
    sizes = Counter(prompt for prompt in prompts if prompt is not None)
    held_out = _held_out(sizes, validation, test, seed)
    sides = ("duplicate" if prompt is None else held_out.get(prompt, "train") for prompt in prompts)
    return Split(bytes(SIDES.index(side) for side in sides))


def leaks(train_prompts: Set[bytes], examples: Iterable[Example]) -> list[Origin]:
    """Where the examples of a validation or test file stand whose prompt is trained on too."""
    return [example.origin for example in examples if example.prompt_digest() in train_prompts]


def _held_out(
    sizes: Mapping[bytes, int], validation: float, test: float, seed: int
) -> dict[bytes, Side]:
    rows = sum(sizes.values())
    validation_rows, test_rows = _rows(validation, rows), _rows(test, rows)
    if rows and validation_rows + test_rows >= rows:
        raise DataError(
            "data_split",
            f"data.validation ({validation}) and data.test ({test}) ask for "
            f"{validation_rows + test_rows:g} of {rows} rows, which leaves none to train on",
        )
    order = sorted(sizes, key=lambda prompt: hashlib.sha256(b"%d:" % seed + prompt).digest())
    # The test rows come first, so that another `validation` leaves them as they are.
    kept_back = 2 if validation else 1
    tested = _take(order, sizes, test_rows, len(order) - kept_back)
    rest = [prompt for prompt in order if prompt not in tested]
    validated = _take(rest, sizes, validation_rows, len(rest) - 1)
    sides: dict[bytes, Side] = dict.fromkeys(tested, "test")
    return sides | dict.fromkeys(validated, "validation")


def _rows(share_or_count: float, rows: int) -> float:
    return share_or_count * rows if share_or_count < 1 else share_or_count


def _take(
    order: Sequence[bytes], sizes: Mapping[bytes, int], wanted_rows: float, most_groups: int
) -> Set[bytes]:
    """Groups from the front of `order` that fit into `wanted_rows`, or the smallest one."""
    taken: set[bytes] = set()
    left_rows = round(wanted_rows)
    for prompt in order:
        if left_rows and len(taken) < most_groups and sizes[prompt] <= left_rows:
            taken.add(prompt)
            left_rows -= sizes[prompt]
    if wanted_rows and not taken and most_groups > 0:
        taken.add(min(order, key=lambda prompt: sizes[prompt]))
    return taken
