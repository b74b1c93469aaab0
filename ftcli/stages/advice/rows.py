"""Prepared rows as the statistics see them, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.data.example import Origin
from ftcli.metrics.dataset.row import DataRow
from ftcli.prepared import SPLITS, Prepared, Split, read_turns, row_batches


@dataclass(frozen=True)
class PreparedRows:
    """The task's rows of a data folder; what is replayed beside them has a file of its own."""

    folder: Path
    prepared: Prepared

    @property
    def count(self) -> int:
        return self.prepared.rows_accepted

    def all(self, one_batch_in: int = 1) -> Iterator[DataRow]:
        """Training rows first; of large data perhaps one whole batch in so many.

        Rows of one batch stand together in the user's file, and so do most that are alike.
        """
        for split in SPLITS:
            yield from self.of(split, one_batch_in)

    def of(self, split: Split, one_batch_in: int = 1) -> Iterator[DataRow]:
        """The rows of one split."""
        if not self.prepared.counts(split).rows:
            return
        for number, batch in enumerate(row_batches(self.folder, split)):
            if number % one_batch_in == 0:
                yield from _rows(batch, held_out=split != "train")


def _rows(batch: Any, *, held_out: bool) -> Iterator[DataRow]:
    import pyarrow.compute as pc

    lengths = pc.list_value_length(batch.column("input_ids")).to_pylist()
    names = ("prompt_tokens", "messages", "file", "line")
    columns = (batch.column(name).to_pylist() for name in names)
    for length, prompt, turns, file, line in zip(lengths, *columns, strict=True):
        messages = read_turns(turns)
        prompt = min(prompt, length)  # a row may be cut within its prompt
        yield DataRow(Origin(file, line), messages, prompt, length - prompt, held_out)
