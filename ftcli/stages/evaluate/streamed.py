"""Prepared rows of a run, proven and read batch by batch: of a large split no list is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftcli.commands import command
from ftcli.data.example import Message
from ftcli.errors import DataError
from ftcli.prepared import RowsOf, damaged_files, read_turns, row_batches, split_file
from ftcli.stages.opening import OpenRun

Turns = tuple[Message, ...]


def require_whole(opened: OpenRun, split: RowsOf) -> None:
    """Raise DataError (`data_damaged`) where a file of rows is not as it was written."""
    for file, what in damaged_files(opened.prepared, opened.run.data, [split]).items():
        raise DataError(
            "data_damaged",
            f"{what}, so that it proves nothing; put it back, or write it again, while data and "
            f"model are as they were: {command('prepare', opened.run.path)}",
            file=str(file),
        )


def turns_of(opened: OpenRun, split: RowsOf) -> Iterator[Turns]:
    """The turns of each row; raises DataError (`data_damaged`)."""
    return (turns for turns, _ in rows_of(opened, split))


def rows_of(opened: OpenRun, split: RowsOf) -> Iterator[tuple[Turns, Any]]:
    """The turns of each row and its token ids, an Arrow list; raises DataError (`data_damaged`)."""
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
