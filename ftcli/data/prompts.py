"""Rows that are only to be answered: the training's formats without their answers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ftcli.config.recipe import Data
from ftcli.data.example import Message, Origin
from ftcli.data.formats import CONVERSATION_COLUMNS, PAIRS
from ftcli.data.lines import lines_of
from ftcli.data.reading import read_rows_as_examples
from ftcli.data.row import Reject, Row
from ftcli.data.source import read_file, read_rows
from ftcli.data.table_rows import bad_byte
from ftcli.errors import DataError

# Stands where the answer will be, so that the training's own readers can check the row.
PLACEHOLDER = "…"


@dataclass(frozen=True)
class Question:
    """Turns that wait for an answer, and where they stand."""

    origin: Origin
    messages: tuple[Message, ...]


def every_row(_: Row) -> bool:
    return True


def read_prompts(
    source: str, data: Data, base: Path, wanted_row: Callable[[Row], bool] = every_row
) -> Iterator[Question | Reject]:
    """Prompts of a data file in the training's format, or of a text file, one a line.

    Rows that are not wanted are passed over; records that cannot be read are rejects in any case.
    """
    if source.removesuffix(".gz").endswith(".txt"):
        if not (base / source).is_file():
            raise DataError("data_missing", "no such file", file=source)
        rows = read_file(base / source, _read_text, source)
        wanted = data.model_copy(update={"format": "pairs"})
    else:
        rows = (_answerable(row, data) for row in read_rows(source, base))
        wanted = data
        if data.prompt is not None and data.completion is not None:
            wanted = data.model_copy(update={"completion": PLACEHOLDER})
    chosen = (row for row in rows if isinstance(row, Reject) or wanted_row(row))
    for item in read_rows_as_examples(chosen, wanted):
        yield item if isinstance(item, Reject) else Question(item.origin, item.prompt)


def _read_text(stream: BinaryIO, file: str) -> Iterator[Row | Reject]:
    """A prompt a line; blank lines are none."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines_of(lines, file), 1):
            origin, prompt = Origin(file, number), line.rstrip("\n")
            bad = bad_byte([prompt])
            if bad:
                yield Reject(origin, bad)
            elif prompt.strip():
                yield Row(origin, {"prompt": prompt, "completion": PLACEHOLDER})


def _answerable(row: Row | Reject, data: Data) -> Row | Reject:
    """The row with a placeholder for its answer, whether it has one or not."""
    if isinstance(row, Reject):
        return row
    fields = dict(row.fields)
    if data.prompt is not None and data.completion is not None:
        return Row(row.origin, fields | {PLACEHOLDER: PLACEHOLDER})
    for column in CONVERSATION_COLUMNS:
        turns = fields.get(column)
        if isinstance(turns, list) and turns:
            fields[column] = _open_turns(turns)
            return Row(row.origin, fields)
    if "instruction" in fields and data.format in ("auto", "alpaca"):
        return Row(row.origin, fields | {"output": PLACEHOLDER})
    for question, answer in PAIRS:
        if question in fields:
            return Row(row.origin, fields | {answer: PLACEHOLDER})
    return Row(row.origin, fields)


def _open_turns(turns: list[object]) -> list[object]:
    """The turns up to the last question, and a placeholder for its answer."""
    last = turns[-1]
    if not isinstance(last, dict):
        return turns
    role, content = ("from", "value") if "from" in last else ("role", "content")
    kept = turns[:-1] if last.get(role) in ("assistant", "gpt") else turns
    return [*kept, {role: "gpt" if role == "from" else "assistant", content: PLACEHOLDER}]
