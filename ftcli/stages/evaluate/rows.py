"""Which rows an evaluation is on, and what is asked in each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcli.console import Reporter
from ftcli.data.example import Message
from ftcli.errors import DataError
from ftcli.prepared import Split, damaged_files
from ftcli.stages.opening import OpenRun

Turns = tuple[Message, ...]


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
    """The rows of a split, or of a file in the run's own format; raises DataError."""
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
    return rows[:limit]


def split_rows(opened: OpenRun, split: Split) -> tuple[Row, ...]:
    """Prepared rows of a run, proven; raises DataError (`data_damaged`)."""
    from ftcli.engine.rows import read_split

    for file, what in damaged_files(opened.prepared, opened.run.data, [split]).items():
        raise DataError(
            "data_damaged",
            f"{what}, so that it proves nothing; put it back, or run ftcli prepare with the recipe "
            "of this run, which writes it again while data and model are as they were",
            file=str(file),
        )
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
        tuple(Message(*turn) for turn in json.loads(values["messages"])),
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
