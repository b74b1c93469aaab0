"""Which rows an evaluation is on, and what is asked in each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcli.console import Reporter
from ftcli.errors import DataError
from ftcli.prepared import RowsOf, Split, read_turns
from ftcli.stages.evaluate.seen import question_digest, seen_fields, seen_in, warn_of_seen
from ftcli.stages.evaluate.streamed import Turns, require_whole
from ftcli.stages.opening import OpenRun


@dataclass(frozen=True)
class Row:
    """One row to be scored and, where it is a conversation, answered."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    prompt_tokens: int
    messages: Turns
    file: str
    line: int
    seen: tuple[RowsOf, ...] | None = ()
    """Which rows of the run ask the same, of those that were trained on (`train`, `replay`) or have
    chosen the checkpoint (`validation`); none: it cannot be told."""

    @property
    def prompt(self) -> Turns:
        """The turns before the last answer; none of a plain text."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        return self.messages[-1].content if self.messages else ""

    @property
    def scored(self) -> Mapping[str, Sequence[int]]:
        """As the engine scores it."""
        return {"input_ids": self.input_ids, "labels": self.labels}


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
    """The rows of a split, or of a file in the run's own format; raises DataError.

    Of a file it is looked up which of its rows the run was trained on.
    """
    from ftcli.engine.encode import encode_file

    if data is None:
        rows = split_rows(opened, split)
    else:
        source = str(data.absolute())
        found = encode_file(source, opened.loaded, opened.run, opened.prepared, reporter)
        rows = tuple(map(_row, found))
    if opened.loaded.recipe.data.loss_on == "all":
        rows = tuple(map(_answer_alone, rows))
    if not rows:
        raise DataError("data_empty", "holds no row to evaluate on", file=str(data or split))
    rows = rows[:limit]
    if data is not None or opened.prepared.leaks:
        rows = _looked_up(opened, rows, reporter)
        fields = seen_of(rows, None if data else split)
        warn_of_seen(len(rows), str(data or split), **fields, reporter=reporter)
    # Else they are held out, and ask nothing that any other row of the run asks.
    return rows


def _looked_up(opened: OpenRun, rows: tuple[Row, ...], reporter: Reporter) -> tuple[Row, ...]:
    """The rows, each with where else in the run the same is asked."""
    questions = [question_digest(row.messages, row.input_ids) for row in rows]
    found = seen_in(opened, questions, reporter)
    return tuple(replace(row, seen=seen) for row, seen in zip(rows, found, strict=True))


def seen_of(rows: Sequence[Row], split: Split | None) -> dict[str, int | None]:
    """How many rows the run was trained on, and how many chose its checkpoint.

    `split`: the one whose rows they are; none: they are of a file.
    """
    fields = seen_fields([row.seen for row in rows])
    if split == "validation":
        fields["rows_in_validation"] = len(rows)
    return fields


def split_rows(opened: OpenRun, split: Split) -> tuple[Row, ...]:
    """Prepared rows of a run, proven; raises DataError (`data_damaged`)."""
    from ftcli.engine.rows import read_split

    require_whole(opened, split)
    return tuple(map(_row, read_split(opened.run.data, split).to_pylist()))


def _answer_alone(row: Row) -> Row:
    """Scored on its last answer, whatever was trained on; a plain text has no prompt."""
    from ftcli.engine.rendering import IGNORED

    start = row.prompt_tokens
    return replace(row, labels=[IGNORED] * start + list(row.labels[start:]))


def _row(values: Mapping[str, Any]) -> Row:
    return Row(
        values["input_ids"],
        values["labels"],
        values["prompt_tokens"],
        read_turns(values["messages"]),
        values["file"],
        values["line"],
    )


def digest_of(rows: Sequence[Row], prompts: Sequence[Sequence[int]]) -> str:
    """16 hex digits of everything a model is given."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps([list(row.input_ids), list(row.labels)]).encode())
    found.update(json.dumps([list(prompt) for prompt in prompts]).encode())
    return found.hexdigest()[:16]
