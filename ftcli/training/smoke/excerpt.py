"""A few rows of a preparation, the longest first: what a short training has to manage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ftcli.data.prepared import (
    SPLITS,
    LongestRow,
    Prepared,
    RowsOf,
    Split,
    SplitCounts,
    row_lengths,
    save_prepared,
    split_digests,
    split_file,
)
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.data.tokenizing.rows import read_split
from ftcli.runs.atomic import whole_folder


def write_excerpt(
    source: Path, prepared: Prepared, folder: Path, rows: Mapping[Split, int], longest: int
) -> Prepared:
    """Write so many rows of each split into `folder`, `longest` of its longest first, the others
    evenly spread.

    The fingerprint stays, so that it passes for a preparation of the same recipe. Rows that are
    replayed are training rows here like any other.
    """
    counts: dict[Split, SplitCounts] = {}
    worst = LongestRow("", 0, 0)
    with whole_folder(folder) as temporary:
        for split in SPLITS:
            names = _trained_on(prepared) if split == "train" else (split,)
            lengths = [length for name in names for length in row_lengths(source, name)]
            chosen = _chosen(lengths, rows.get(split, 0), longest)
            table = _rows(pa.concat_tables([read_split(source, name) for name in names]), chosen)
            _write(table, split_file(temporary, split))
            counts[split] = _counts(table)
            worst = max(worst, _longest(table), key=lambda row: row.tokens)
        kept = replace(
            prepared,
            train=counts["train"],
            validation=counts["validation"],
            test=counts["test"],
            longest=worst,
            replay=None,
            digests=split_digests(temporary),
        )
        save_prepared(kept, temporary)
    return kept


def _trained_on(prepared: Prepared) -> tuple[RowsOf, ...]:
    return ("train", "replay") if prepared.replay is not None else ("train",)


def _chosen(lengths: list[int], count: int, longest: int) -> list[int]:
    """Numbers of rows."""
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    first, rest = by_length[:longest], sorted(by_length[longest:])
    wanted = max(0, min(count - len(first), len(rest)))
    return first[:count] + [rest[place * len(rest) // wanted] for place in range(wanted)]


def _rows(table: pa.Table, chosen: list[int]) -> pa.Table:
    """Slices, because a `take` would copy all rows to pick a few."""
    parts = [table.slice(row, 1) for row in chosen]
    return pa.concat_tables([table.slice(0, 0), *parts])


def _write(table: pa.Table, file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)


def _counts(table: pa.Table) -> SplitCounts:
    tokens, trained = 0, 0
    for row in table.column("labels").to_pylist():
        tokens += len(row)
        trained += sum(label != IGNORED for label in row)
    return SplitCounts(table.num_rows, tokens, trained)


def _longest(table: pa.Table) -> LongestRow:
    if not table.num_rows:
        return LongestRow("", 0, 0)
    lengths = pc.list_value_length(table.column("input_ids")).to_pylist()
    row = table.select(["file", "line"]).slice(lengths.index(max(lengths)), 1).to_pylist()[0]
    return LongestRow(row["file"], row["line"], max(lengths))
