"""CSV and parquet → rows. No types are guessed: a CSV value stays text."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from ftcli.data.example import Origin, RejectedRow, Row
from ftcli.data.json_rows import LONGEST, lines_of
from ftcli.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

EXCEL = " (in Excel: Save as → CSV UTF-8)"
# Rows of a parquet file that are in memory together.
PARQUET_BATCH_ROWS = 256


def read_csv(stream: BinaryIO, file: str) -> Iterator[Row | RejectedRow]:
    """Records under a header line, separated by comma, semicolon or tab (`delimiter_of`).

    A row's line is where it begins, even if quoted values contain line ends. Raises DataError
    (`data_broken`) for an unreadable header and for a quote that is never closed.
    """
    # The default, 131072 characters per value, is less than a long document.
    csv.field_size_limit(LONGEST)
    with io.TextIOWrapper(
        stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as lines:
        bounded = lines_of(lines, file)
        first = next(bounded, "")
        # Without strict the csv module silently drops a stray quote.
        reader = csv.reader(
            itertools.chain([first], bounded), delimiter=delimiter_of(first), strict=True
        )
        names = _header(reader, file)
        for line, record in _records(reader, file):
            yield _csv_row(names, record, Origin(file, line))


def read_parquet(stream: BinaryIO, file: str) -> Iterator[Row | RejectedRow]:
    """Records of a parquet file, batch by batch; a row's line is its number, from 1.

    Raises DataError (`data_broken`).
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(stream)
        _refuse_repeated(table.schema_arrow.names, file)
        numbers = itertools.count(1)
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for fields in batch.to_pylist():
                yield Row(Origin(file, next(numbers)), fields)
    except ArrowException as error:
        raise DataError("data_broken", f"not readable as parquet: {error}", file=file) from error


def delimiter_of(header: str) -> str:
    """Comma, semicolon or tab: the one that the header line has most outside quotes."""
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=unquoted.count)


def _header(reader: Reader, file: str) -> list[str]:
    """Names of the columns; empty for an empty file."""
    line, names = next(_records(reader, file), (1, []))
    if isinstance(names, csv.Error):
        raise DataError("data_broken", f"header: {names}", file=file, line=line)
    bad = bad_byte(names)
    if bad:
        raise DataError("data_broken", f"header: {bad}{EXCEL}", file=file, line=line)
    _refuse_repeated(names, file, line)
    return names


def _refuse_repeated(names: Sequence[str], file: str, line: int | None = None) -> None:
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise DataError(
            "data_broken", f"duplicate columns: {', '.join(repeated)}", file=file, line=line
        )


def _records(reader: Reader, file: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Each record with the line on which it starts; blank lines are skipped."""
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The open quote took the rest of the file (message of CPython's Modules/_csv.c).
            if "unexpected end of data" in str(error):
                message = "a quote opened in this row is never closed"
                raise DataError("data_broken", message, file=file, line=line) from error
            if "larger than field limit" in str(error):
                message = f"a value of more than {LONGEST // 10**6} MB; is a quote never closed?"
                raise DataError("data_broken", message, file=file, line=line) from error
            yield line, error
            continue
        if values:
            yield line, values


def _csv_row(
    names: Sequence[str], record: list[str] | csv.Error, origin: Origin
) -> Row | RejectedRow:
    if isinstance(record, csv.Error):
        return RejectedRow(origin, f"not CSV: {record}")
    if len(record) != len(names):
        values = "1 value" if len(record) == 1 else f"{len(record)} values"
        return RejectedRow(origin, f"{values}, where the header has {len(names)}")
    bad = bad_byte(record)
    if bad:
        return RejectedRow(origin, f"{bad}{EXCEL}")
    # A column without a name, such as pandas' index, cannot be referred to.
    return Row(origin, {name: value for name, value in zip(names, record, strict=True) if name})


def bad_byte(values: Sequence[str]) -> str | None:
    """The first byte that is not UTF-8, as a message; surrogateescape keeps it as U+DC00 + byte."""
    for value in values:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"not UTF-8: byte 0x{ord(value[error.start]) - 0xDC00:02x}; save it as UTF-8"
    return None
