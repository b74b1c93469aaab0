"""Which rows of an evaluation ask what the run was trained on, or what chose its checkpoint."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

from ftcli.console import Reporter
from ftcli.data.example import Example, Origin
from ftcli.errors import DataError
from ftcli.prepared import RowsOf
from ftcli.stages.evaluate.streamed import Turns, rows_of
from ftcli.stages.opening import OpenRun

SEEN_IN: tuple[RowsOf, ...] = ("train", "replay", "validation")
TRAINED_ON: tuple[RowsOf, ...] = ("train", "replay")
NOWHERE = Origin("", 0)


def question_digest(turns: Turns, input_ids: Iterable[int]) -> bytes:
    """Equal where the same is asked, under whatever system turn; of a plain text, where it is
    equal as far as it is trained on."""
    if turns:
        return Example(turns, NOWHERE).question_digest()
    return hashlib.sha256(array("i", input_ids).tobytes()).digest()


def seen_in(
    opened: OpenRun, questions: Sequence[bytes], reporter: Reporter
) -> list[tuple[RowsOf, ...] | None]:
    """Of each question the files of the run's rows that ask it too, read row by row.

    None of all where one of them is gone or damaged, and a warning.
    """
    wanted = set(questions)
    found: dict[RowsOf, set[bytes]] = {}
    try:
        for split in SEEN_IN:
            if split in opened.prepared.row_files:
                found[split] = _asked(opened, split, wanted)
    except DataError as error:
        reporter.warn(f"whether these rows were trained on cannot be told: {error}")
        return [None] * len(questions)
    return [tuple(s for s, asked in found.items() if each in asked) for each in questions]


def _asked(opened: OpenRun, split: RowsOf, wanted: set[bytes]) -> set[bytes]:
    found = set()
    for turns, ids in rows_of(opened, split):
        digest = question_digest(turns, () if turns else ids.as_py())
        if digest in wanted:
            found.add(digest)
    return found


def seen_fields(seen: Sequence[tuple[RowsOf, ...] | None]) -> dict[str, int | None]:
    """How many rows were trained on, and how many chose the checkpoint; none: not known."""
    trained_on = validated = None
    known = [each for each in seen if each is not None]
    if len(known) == len(seen):
        trained_on = sum(any(split in TRAINED_ON for split in each) for each in known)
        validated = sum("validation" in each for each in known)
    return {"rows_trained_on": trained_on, "rows_in_validation": validated}


def warn_of_seen(
    rows: int,
    data: str,
    rows_trained_on: int | None,
    rows_in_validation: int | None,
    reporter: Reporter,
) -> None:
    """Warn of rows that make the tuned model look better than it is, whose own file was named."""
    parts = []
    if rows_trained_on:
        parts.append(f"{rows_trained_on} of {rows} rows ask what the run was trained on")
    if data != "validation" and rows_in_validation:
        parts.append(f"{rows_in_validation} of {rows} what chose its checkpoint")
    if parts:
        reporter.warn(
            f"{data}: {', '.join(parts)}: the tuned model looks better on them than it is; take "
            "rows that it never saw"
        )
