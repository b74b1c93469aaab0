"""Which rows an evaluation is on, how they are read, and which of them the run has seen."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcli.console import Reporter
from ftcli.data.example import Example, Message, Origin
from ftcli.data.prepared import RowsOf, Split, damaged_files, read_turns, row_batches, split_file
from ftcli.errors import DataError
from ftcli.shell import command
from ftcli.training.opening import OpenRun

Turns = tuple[Message, ...]
NOWHERE = Origin("", 0)


@dataclass(frozen=True)
class Row:
    """One row to be scored and, where it is a conversation, answered."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    prompt_tokens: int
    messages: Turns
    file: str
    line: int

    @property
    def prompt(self) -> Turns:
        """The turns before the last answer; none of a plain text."""
        return self.messages[:-1]

    @property
    def scored(self) -> Mapping[str, Sequence[int]]:
        """As the engine scores it."""
        return {"input_ids": self.input_ids, "labels": self.labels}


def row_of(values: Mapping[str, Any]) -> Row:
    """A prepared row as it stands on disk."""
    return Row(**{**values, "messages": read_turns(values["messages"])})


def held_out(opened: OpenRun, data: Path | None) -> Split:
    """The test rows, or else the validation rows (which have chosen the checkpoint)."""
    if data is not None or opened.prepared.test.rows:
        return "test"
    if opened.prepared.validation.rows:
        return "validation"
    raise DataError(
        "data_empty",
        "the run held no rows out (data.test: 0, data.validation: 0); name some with --data FILE",
    )


def read_rows(
    opened: OpenRun, data: Path | None, split: Split, limit: int | None, reporter: Reporter
) -> tuple[Row, ...]:
    """The rows of a split, or of a file in the run's own format; raises DataError."""
    from ftcli.data.tokenizing.encode import encode_file
    from ftcli.data.tokenizing.rows import read_split

    if data is None:
        require_whole(opened, split)
        found: Iterable[Mapping[str, Any]] = read_split(opened.run.data, split).to_pylist()
    else:
        source = str(data.absolute())
        found = encode_file(source, opened.loaded, opened.run, opened.prepared, reporter)
    rows = tuple(map(row_of, found))
    if opened.loaded.recipe.data.loss_on == "all":
        rows = tuple(map(_answer_alone, rows))
    if not rows:
        raise DataError("data_empty", "holds no row to evaluate on", file=str(data or split))
    return rows[:limit]


def _answer_alone(row: Row) -> Row:
    """Scored on its last answer, whatever was trained on; a plain text has no prompt."""
    from ftcli.data.tokenizing.rendering import IGNORED

    start = row.prompt_tokens
    return replace(row, labels=[IGNORED] * start + list(row.labels[start:]))


@dataclass(frozen=True)
class SeenRows:
    """Rows of an evaluation that make the tuned model look better than it is; none: not known."""

    rows_trained_on: int | None
    """They ask what a training row or a replayed one asks."""
    rows_in_validation: int | None
    """They have chosen the checkpoint."""

    def warn(self, data: str, rows: int, reporter: Reporter) -> None:
        """`data`: where the rows are from; the split of validation itself is no surprise."""
        parts = []
        if self.rows_trained_on:
            parts.append(f"{self.rows_trained_on} of {rows} rows ask what the run was trained on")
        if data != "validation" and self.rows_in_validation:
            parts.append(f"{self.rows_in_validation} of {rows} what chose its checkpoint")
        if parts:
            reporter.warn(
                f"{data}: {', '.join(parts)}: the tuned model looks better on them than it is; "
                "take rows that it never saw"
            )


def find_seen(
    opened: OpenRun, rows: Sequence[Row], split: Split | None, reporter: Reporter
) -> SeenRows:
    """`split`: whose rows they are; none: they are of a file.

    Nothing is known of all where a file of the run's rows is gone or damaged, and a warning.
    """
    trained_on: int | None = 0
    in_validation: int | None = 0
    # Held-out rows ask nothing that any other row of the run asks, unless the recipe allowed it.
    if split is None or opened.prepared.leaks:
        digests = [question_digest(row.messages, row.input_ids) for row in rows]
        try:
            trained = _asked_in(opened, ("train", "replay"), set(digests))
            validated = _asked_in(opened, ("validation",), set(digests))
            trained_on = sum(digest in trained for digest in digests)
            in_validation = sum(digest in validated for digest in digests)
        except DataError as error:
            reporter.warn(f"whether these rows were trained on is not known: {error}")
            trained_on = in_validation = None
    return SeenRows(trained_on, len(rows) if split == "validation" else in_validation)


def question_digest(turns: Turns, input_ids: Iterable[int]) -> bytes:
    """Equal where the same is asked, under whatever system turn; of a plain text, where it is
    equal as far as it is trained on."""
    if turns:
        return Example(turns, NOWHERE).question_digest()
    return hashlib.sha256(array("i", input_ids).tobytes()).digest()


def _asked_in(opened: OpenRun, splits: Iterable[RowsOf], wanted: set[bytes]) -> set[bytes]:
    """Which of the questions the run's rows ask too, read row by row."""
    return {
        digest
        for split in splits
        if split in opened.prepared.row_files
        for turns, ids in stream_rows(opened, split)
        if (digest := question_digest(turns, () if turns else ids.as_py())) in wanted
    }


def require_whole(opened: OpenRun, split: RowsOf) -> None:
    """Raise DataError (`data_damaged`) where a file of rows is not as it was written."""
    for file, what in damaged_files(opened.prepared, opened.run.data, [split]).items():
        raise DataError(
            "data_damaged",
            f"{what}, so that it proves nothing; put it back, or write it again, while data and "
            f"model are as they were: {command('prepare', opened.run.path)}",
            file=str(file),
        )


def stream_turns(opened: OpenRun, split: RowsOf) -> Iterator[Turns]:
    """The turns of each row; raises DataError (`data_damaged`)."""
    return (turns for turns, _ in stream_rows(opened, split))


def stream_rows(opened: OpenRun, split: RowsOf) -> Iterator[tuple[Turns, Any]]:
    """The turns of each row and its token ids, an Arrow list; of a large split no list is made.

    Raises DataError (`data_damaged`).
    """
    import pyarrow as pa

    require_whole(opened, split)
    try:
        for batch in row_batches(opened.run.data, split):
            # Files of before digests were kept prove nothing, and Arrow follows their offsets.
            batch.validate(full=True)
            ids = batch.column("input_ids")
            for index, turns in enumerate(batch.column("messages").to_pylist()):
                yield read_turns(turns), ids[index]
    except pa.ArrowInvalid as error:
        raise DataError(
            "data_damaged",
            f"not as ftcli prepare has written it ({error})",
            file=str(split_file(opened.run.data, split)),
        ) from error
