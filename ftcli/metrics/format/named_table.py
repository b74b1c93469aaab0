"""A file of the user's as tables to run queries on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from ftcli.console import shown_path
from ftcli.data.row import Reject, Row
from ftcli.data.source import data_suffix, read_rows
from ftcli.errors import DataError
from ftcli.metrics.format.sandbox import MOST_STEPS, Sandbox, Value

# All of it is held in memory.
MOST_ROWS = 500_000
MOST_DATABASE_BYTES = 1_000_000_000
SQLITE_MAGIC = b"SQLite format 3\x00"
# A scan takes about 10 steps a row; a query may join and group.
STEPS_PER_ROW = 100
NO_ROOM = "too large for the memory that SQLite may still take in this process"
LARGEST_INTEGER = 2**63 - 1


def open_tables(name: str, base: Path, table_name: str) -> Sandbox:
    """The file's rows as one table, or an SQLite file's own tables, in memory, closed to writing.

    Raises DataError (`answer_table`, or what reading rows raises).
    """
    path, is_database = base / name, _is_database(name, base)
    if is_database:
        return _database(path)
    return _one_table(path, table_name, read_rows(name, base))


def require_table(name: str, base: Path) -> None:
    """Raise as `open_tables` does of a file whose rows cannot be read; SQLite is not begun.

    What SQLite has opened first limits its memory for all of the process (`Sandbox`).
    """
    if not _is_database(name, base):
        _read(base / name, read_rows(name, base))


def _is_database(name: str, base: Path) -> bool:
    """Whether the file is SQLite's own; raises DataError where it is no table at all."""
    path = base / name
    try:
        if not path.is_file():
            raise _error(path, "eval.format.table names this file, and there is none")
        with path.open("rb") as file:
            is_database = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from error
    if not is_database and data_suffix(name) is None:
        raise _error(path, "neither csv, tsv, jsonl, json nor parquet, and not an SQLite file")
    return is_database


def _database(path: Path) -> Sandbox:
    """A copy: nothing of the file is locked or written."""
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size:
        raise _error(path, f"{log.name} beside it holds rows of it; close what has it open")
    if path.stat().st_size > MOST_DATABASE_BYTES:
        raise _error(path, f"larger than {MOST_DATABASE_BYTES / 1e9:.0f} GB, held in memory")
    sandbox = Sandbox()
    try:
        address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        source = sqlite3.connect(address, uri=True)
        try:
            source.backup(sandbox.connection)
        finally:
            source.close()
        names = [row[0] for row in sandbox.connection.execute(TABLES)]
        sizes = [_size(sandbox.connection, name) for name in names]
    except sqlite3.Error as error:
        raise _error(path, f"not readable as SQLite: {error}") from error
    except MemoryError as error:
        raise _error(path, NO_ROOM) from error
    if not names:
        raise _error(path, "holds no table")
    rows, longest = sum(size[0] for size in sizes), max(size[1] for size in sizes)
    return sandbox.close(longest, MOST_STEPS + STEPS_PER_ROW * rows)


TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


def _size(connection: sqlite3.Connection, table: str) -> tuple[int, int]:
    """Rows of a table, and the length of its longest value."""
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({quoted(table)})")]
    lengths = ", ".join(f"max(length({quoted(column)}))" for column in columns) or "0"
    rows, *longest = connection.execute(
        f"SELECT count(*), {lengths} FROM {quoted(table)}"
    ).fetchone()
    return rows, max((length or 0 for length in longest), default=0)


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def _read(path: Path, found: Iterable[Row | Reject]) -> list[Row]:
    rows: list[Row] = []
    for row in found:
        if isinstance(row, Reject):
            raise _error(path, f"a row that cannot be read: {row.reason}", row.origin.line)
        rows.append(row)
        if len(rows) > MOST_ROWS:
            raise _error(path, f"more than {MOST_ROWS:,} rows, which are held in memory")
    if not rows:
        raise _error(path, "holds no row")
    return rows


def _one_table(path: Path, table_name: str, found: Iterable[Row | Reject]) -> Sandbox:
    rows = _read(path, found)
    columns = list(dict.fromkeys(name for row in rows for name in row.fields))
    values = [[_stored(row.fields.get(name)) for row in rows] for name in columns]
    kinds = [_kind(column, from_text=_is_text(path)) for column in values]
    if _is_text(path):  # an empty cell of a csv is no number
        values = [
            [None if v == "" else v for v in column] if kind == "NUMERIC" else column
            for column, kind in zip(values, kinds, strict=True)
        ]
    sandbox = Sandbox()
    declared = ", ".join(f"{quoted(c)} {k}" for c, k in zip(columns, kinds, strict=True))
    places = ", ".join("?" * len(columns))
    try:
        connection = sandbox.connection
        connection.execute(f"CREATE TABLE {quoted(table_name)} ({declared})")
        connection.execute("BEGIN")
        statement = f"INSERT INTO {quoted(table_name)} VALUES ({places})"
        connection.executemany(statement, zip(*values, strict=True))
        connection.execute("COMMIT")
    except (sqlite3.Error, UnicodeEncodeError) as error:
        raise _error(path, f"no table of SQLite can hold it: {error}") from error
    except MemoryError as error:
        raise _error(path, NO_ROOM) from error
    longest = (
        max(len(v) for column in values for v in column if isinstance(v, str | bytes))
        if any(isinstance(v, str | bytes) for column in values for v in column)
        else 0
    )
    return sandbox.close(longest, MOST_STEPS + STEPS_PER_ROW * len(rows))


def _is_text(path: Path) -> bool:
    return data_suffix(path.name) in (".csv", ".tsv")


def _stored(value: object) -> Value:
    """A value as SQLite keeps it: true is 1, a list or an object its JSON, a date its text."""
    match value:
        case None | str() | bytes():
            return value
        case bool():
            return int(value)
        case int():
            return value if abs(value) <= LARGEST_INTEGER else float(value)
        case float():
            return float(value)
        case list() | dict():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)


def _kind(values: Sequence[Value], *, from_text: bool) -> str:
    """NUMERIC where every value is a number (of a csv: reads as one), TEXT where all are text."""
    told = [value for value in values if value is not None and not (from_text and value == "")]
    if from_text:
        return "NUMERIC" if told and all(_reads_as_number(str(v)) for v in told) else "TEXT"
    if told and all(isinstance(value, int | float) for value in told):
        return "NUMERIC"
    return "TEXT" if told and all(isinstance(value, str) for value in told) else ""


def _reads_as_number(text: str) -> bool:
    """As SQLite's numbers are written; 007 is a code, and would lose its zeros."""
    digits = text.removeprefix("-")
    if len(digits) > 1 and digits[0] == "0" and digits[1] != ".":
        return False
    whole, dot, part = digits.partition(".")
    return whole.isascii() and whole.isdigit() and (not dot or (part.isascii() and part.isdigit()))


def _error(path: Path, message: str, line: int | None = None) -> DataError:
    return DataError("answer_table", message, file=shown_path(path), line=line)
