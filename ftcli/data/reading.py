"""The user's data as examples: rows, recognised once, turned one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ftcli.config.recipe import Data
from ftcli.data.example import Example
from ftcli.data.formats import pin_system, recognise, refuse_unsupported, to_example
from ftcli.data.row import Reject, Row
from ftcli.data.source import read_rows
from ftcli.errors import DataError

# In these the user has named what is trained on, so columns beside it do not matter.
CHOSEN_BY_USER = ("columns", "text")


def read_examples(source: str, data: Data, base: Path) -> Iterator[Example | Reject]:
    """Every row of `source` (as in `read_rows`) as an Example or a Reject, streamed.

    Raises DataError as `read_rows`, at once for what is missing, and with code `data_format` at
    the first readable row when the data are not of a kind that can be trained on.
    """
    return read_rows_as_examples(read_rows(source, base), data)


def pinned_system(data: Data, base: Path) -> str | None:
    """data.system as a template: where it names a column of the training rows, `{column}`."""
    first = next((row for row in read_rows(data.train, base) if isinstance(row, Row)), None)
    return data.system if first is None else pin_system(data, first).system


def format_of(data: Data, base: Path) -> str | None:
    """The format of the training rows, by the recipe or by the first of them; none: no row."""
    if data.format != "auto":
        return data.format
    first = next((row for row in read_rows(data.train, base) if isinstance(row, Row)), None)
    return None if first is None else _settle_format(first, data)


def read_rows_as_examples(rows: Iterator[Row | Reject], data: Data) -> Iterator[Example | Reject]:
    """Rows as examples of the recipe's format, or of the one that the first of them shows."""
    format_name = None
    for row in rows:
        if isinstance(row, Reject):
            yield row
            continue
        if format_name is None:
            format_name = _settle_format(row, data)
            data = pin_system(data, row)
        yield to_example(row, data, format_name)


def _settle_format(first: Row, data: Data) -> str:
    """The recipe's format, or the one its keys or the first row show; raises DataError."""
    format_name: str = data.format
    if format_name != "auto":
        if format_name not in CHOSEN_BY_USER:
            refuse_unsupported(first)
    elif data.prompt is not None and data.completion is not None:
        format_name = "columns"
    else:
        format_name = recognise(first)
    if format_name == "text" and data.system is not None:
        raise DataError(
            "data_format",
            "plain text has no turn for data.system; leave it out",
            file=first.origin.file,
            line=first.origin.line,
        )
    return format_name
