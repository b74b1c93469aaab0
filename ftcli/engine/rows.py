"""Prepared rows on disk: Arrow streams that are read back memory-mapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from ftcli.data.example import Example
from ftcli.engine.rendering import Encoded
from ftcli.prepared import Split, split_file

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
ROWS_PER_BATCH = 512


def record(row: Encoded, example: Example) -> dict[str, Any]:
    """A row of SCHEMA."""
    messages = [[message.role, message.content] for message in example.messages]
    return {
        "input_ids": row.input_ids,
        "labels": row.labels,
        "prompt_tokens": row.prompt_tokens,
        "messages": json.dumps(messages, ensure_ascii=False),
        "file": example.origin.file,
        "line": example.origin.line,
    }


class RowWriter:
    """Rows of one split into an Arrow stream, batch by batch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> RowWriter:
        self._sink = pa.OSFile(str(self._path), "wb")
        self._stream = pa.ipc.new_stream(self._sink, SCHEMA)
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._stream.close()
        self._sink.close()

    def write(self, row: Encoded, example: Example) -> None:
        self._rows.append(record(row, example))
        if len(self._rows) == ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, SCHEMA))
            self._rows = []


def read_split(folder: Path, split: Split) -> pa.Table:
    """Memory-mapped rows of one split."""
    with pa.memory_map(str(split_file(folder, split))) as source:
        return pa.ipc.open_stream(source).read_all()
