"""Prepared rows on disk: Arrow streams, read back memory-mapped."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ftcli.data.dataset import RowsOf, Split, split_file
from ftcli.data.example import Example
from ftcli.data.tokenizing.rendering import Encoded
from ftcli.errors import DataError

SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "prompt_tokens": pa.int32(),
        "messages": pa.string(),
        "file": pa.string(),
        "line": pa.int32(),
    }
)
# A batch is written when it has this many rows, or this many tokens or characters.
ROWS_PER_BATCH = 512
SIZE_PER_BATCH = 4_000_000


def record(row: Encoded, example: Example) -> dict[str, Any]:
    """A row of SCHEMA."""
    return {
        "input_ids": row.input_ids,
        "labels": row.labels,
        "prompt_tokens": row.prompt_tokens,
        "messages": _messages(example),
        "file": example.origin.file,
        "line": example.origin.line,
    }


def _messages(example: Example) -> str:
    turns = [[message.role, message.content] for message in example.messages]
    return json.dumps(turns, ensure_ascii=False)


@dataclass
class _Batch:
    """Rows to be written; token ids take 4 bytes each, unlike Python's integers."""

    input_ids: array[int] = field(default_factory=lambda: array("i"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("i", [0]))
    prompt_tokens: array[int] = field(default_factory=lambda: array("i"))
    messages: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("i"))
    characters: int = 0

    def add(self, row: Encoded, example: Example) -> None:
        self.input_ids.fromlist(row.input_ids)
        self.labels.fromlist(row.labels)
        self.ends.append(len(self.input_ids))
        self.prompt_tokens.append(row.prompt_tokens)
        self.messages.append(_messages(example))
        self.files.append(example.origin.file)
        self.lines.append(example.origin.line)
        self.characters += len(self.messages[-1])

    def is_full(self) -> bool:
        size = max(len(self.input_ids), self.characters)
        return len(self.lines) >= ROWS_PER_BATCH or size >= SIZE_PER_BATCH

    def arrow(self) -> pa.RecordBatch:
        ends = _numbers(self.ends)
        columns = [
            pa.ListArray.from_arrays(ends, _numbers(self.input_ids)),
            pa.ListArray.from_arrays(ends, _numbers(self.labels)),
            _numbers(self.prompt_tokens),
            pa.array(self.messages, pa.string()),
            pa.array(self.files, pa.string()),
            _numbers(self.lines),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _numbers(values: array[int]) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


class RowWriter:
    """Writes the rows of one split to an Arrow stream, batch by batch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._batch = _Batch()

    def __enter__(self) -> RowWriter:
        self._sink = pa.OSFile(str(self._path), "wb")
        self._stream = pa.ipc.new_stream(self._sink, SCHEMA)
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._stream.close()
        self._sink.close()

    def write(self, row: Encoded, example: Example) -> None:
        self._batch.add(row, example)
        if self._batch.is_full():
            self._flush()

    def _flush(self) -> None:
        if self._batch.lines:
            self._stream.write_batch(self._batch.arrow())
            self._batch = _Batch()


def read_split(folder: Path, split: RowsOf) -> pa.Table:
    """Memory-mapped rows of one file; raises DataError if it is damaged.

    Validated first, because Arrow crashes on offsets that lead out of the file.
    """
    file = split_file(folder, split)
    try:
        with pa.memory_map(str(file)) as source:
            rows = pa.ipc.open_stream(source).read_all()
        if rows.schema != SCHEMA:
            raise pa.ArrowInvalid("its columns are not the ones of prepared rows")
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(
            "data_damaged",
            f"not as ftcli prepare wrote it ({error}); delete {folder} to prepare again",
            file=str(file),
        ) from error
    return rows


def first_rows(folder: Path, split: Split, count: int) -> Iterator[dict[str, Any]]:
    """The first `count` rows, without mapping the file, which would count as process memory."""
    with pa.OSFile(str(split_file(folder, split))) as source:
        batches = pa.ipc.open_stream(source)
        yield from islice((row for batch in batches for row in batch.to_pylist()), count)
