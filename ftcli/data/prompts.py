"""Rows that are only to be answered: the training's formats without their answers."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
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


def read_prompt_rows(source: str, base: Path) -> Iterator[Row | Reject]:
    """Records of a data file, or of a text file: its lines, as the column `prompt`."""
    if not _is_text(source):
        return read_rows(source, base)
    if not (base / source).is_file():
        raise DataError("data_missing", "no such file", file=source)
    return read_file(base / source, _read_text, source)


def to_prompts(
    rows: Iterable[Row], data: Data, source: str
) -> Iterator[tuple[Message, ...] | Reject]:
    """The turns before the answer of each row, in the training's format."""
    if _is_text(source):
        data = data.model_copy(update={"format": "pairs", "prompt": None, "completion": None})
    elif data.prompt is not None and data.completion is not None:
        data = data.model_copy(update={"completion": PLACEHOLDER})
    for item in read_rows_as_examples((_with_placeholder(row, data) for row in rows), data):
        yield item if isinstance(item, Reject) else item.prompt


def _is_text(source: str) -> bool:
    return source.removesuffix(".gz").endswith(".txt")


def _read_text(stream: BinaryIO, file: str) -> Iterator[Row | Reject]:
    """A prompt a line; blank lines are left out."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines_of(lines, file), 1):
            origin, prompt = Origin(file, number), line.rstrip("\n")
            bad = bad_byte([prompt])
            if bad:
                yield Reject(origin, bad)
            elif prompt.strip():
                yield Row(origin, {"prompt": prompt})


def _with_placeholder(row: Row, data: Data) -> Row:
    """The row with a placeholder for its answer, whether it has one or not."""
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
