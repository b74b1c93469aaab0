"""SQLite in memory for untrusted queries, with the tables of a file or generated tables.

Limits count steps, rows and bytes, so that a query has the same result on every machine.

Generated tables have the columns of the prompt's CREATE TABLE, and rows near the reference's
literals, after Zhong, Yu and Klein 2020, "Semantic Evaluation for Text-to-SQL with Distilled Test
Suites": queries are equal if they have the same result in each of several databases.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ftcli.config.section import data_suffix
from ftcli.console import shown_path
from ftcli.data.example import RejectedRow
from ftcli.data.sources import read_rows
from ftcli.errors import DataError

if TYPE_CHECKING:
    from sqlglot import Token

Value = str | int | float | bytes | None

# A scan takes about 10 per row, a join of two tables of 1,000 rows 5 million.
MAX_STEPS = 30_000_000
STEPS_BETWEEN_CALLS = 1000
MAX_SECONDS = 10.0
# Of SQLite in this process: tables, intermediate results and sorts.
MAX_BYTES = 1_000_000_000
MAX_FILE_ROWS = 500_000
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?")
MAX_RESULT_ROWS = 10_000
MAX_RESULT_BYTES = 2_000_000
# Of a value that a query creates: one step of instr() takes the square of it.
MAX_VALUE_BYTES = 2_000
LIMITS = {
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 500,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
READING = {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE}
REFUSED_FUNCTIONS = {"load_extension", "random", "randomblob", "zeroblob", "fts3_tokenizer"}
# What sqlite3 raises for a bad query.
QUERY_ERRORS = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError)

CREATE = re.compile(r"\bCREATE\s+(?:TEMP(?:ORARY)?\s+)?(?=TABLE\b)", re.IGNORECASE)
MAX_STATEMENT_CHARACTERS = 20_000
MAX_TABLES = 30
GENERATED_STEPS = 500_000  # per query on generated tables
ROWS, LARGEST_GROUP = 40, 20
# Proportion of mutated values, each in a third of the databases.
MUTATED = (0.4, 0.6, 0.85)
# SQLite's integers have 8 bytes.
LARGEST_NUMBER = 10**17
Literal = str | int | float


@dataclass(frozen=True)
class Result:
    """The rows of a query, or why it failed."""

    rows: tuple[tuple[Value, ...], ...] = ()
    fault: str | None = None

    @property
    def is_empty(self) -> bool:
        """No row, or only NULL: the query finds nothing."""
        return all(value is None for row in self.rows for value in row)

    def equals(self, other: Result, *, ordered: bool) -> bool:
        """Equal multisets of rows; numbers to 9 digits, because sums depend on their order."""
        if self.fault is not None or other.fault is not None:
            return False
        mine, theirs = (
            [tuple(float(f"{v:.9g}") if isinstance(v, float) else v for v in row) for row in rows]
            for rows in (self.rows, other.rows)
        )
        return mine == theirs if ordered else Counter(mine) == Counter(theirs)


class Database:
    """A read-only connection; each query takes at most `steps`.

    `longest`: characters of its longest value.
    """

    def __init__(self, connection: sqlite3.Connection, steps: int, longest: int = 0) -> None:
        self._connection = connection
        self._steps = steps
        for limit, most in LIMITS.items():
            connection.setlimit(limit, most)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(MAX_VALUE_BYTES, 2 * longest))
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.set_authorizer(_authorize)

    def run(self, query: str) -> Result:
        """The result of one query; never raises."""
        calls, most_calls = itertools.count(), self._steps // STEPS_BETWEEN_CALLS
        ends = time.monotonic() + MAX_SECONDS

        def stop() -> bool:
            return next(calls) >= most_calls or time.monotonic() > ends

        self._connection.set_progress_handler(stop, STEPS_BETWEEN_CALLS)
        rows: list[tuple[Value, ...]] = []
        size = 0
        try:
            for row in self._connection.execute(query):
                size += sum(len(v) if isinstance(v, str | bytes) else 8 for v in row)
                if len(rows) == MAX_RESULT_ROWS or size > MAX_RESULT_BYTES:
                    return Result(
                        fault=f"more than {MAX_RESULT_ROWS:,} rows or {MAX_RESULT_BYTES:,} bytes"
                    )
                rows.append(row)
        except QUERY_ERRORS as error:
            limits = {"interrupted": "takes too many steps", "": "takes too much memory"}
            return Result(fault=limits.get(str(error), str(error)))
        return Result(tuple(rows))


def _authorize(action: int, _: str | None, function: str | None, *__: str | None) -> int:
    called = action == sqlite3.SQLITE_FUNCTION and (function or "").lower() not in REFUSED_FUNCTIONS
    return sqlite3.SQLITE_OK if called or action in READING else sqlite3.SQLITE_DENY


def in_memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute(f"PRAGMA hard_heap_limit={MAX_BYTES}")
    return connection


def columns_of(connection: sqlite3.Connection) -> dict[str, list[tuple[str, str, bool]]]:
    """Table → (name, declared type, is in the key) of each column."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    tables = [name for (name,) in connection.execute(query)]
    infos = [connection.execute(f"PRAGMA table_info({quoted(name)})") for name in tables]
    found = [[(name, kind, bool(key)) for _, name, kind, *_, key in info] for info in infos]
    return dict(zip(tables, found, strict=True))


def quoted(name: str) -> str:
    """A name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def file_database(name: str, table_name: str) -> Database:
    """A file's rows as the table `table_name`, or a copy of an SQLite file.

    Raises DataError (`answer_table`, or what reading rows raises).
    """
    path, connection = Path(name), in_memory()
    try:
        with path.open("rb") as file:
            is_database = file.read(16) == b"SQLite format 3\x00"
        if is_database:
            _copy(path, connection)
        else:
            _fill(connection, table_name, _columns(name), data_suffix(name))
        longest = [0]
        for table, columns in columns_of(connection).items():
            lengths = ", ".join(f"max(length({quoted(column)}))" for column, *_ in columns)
            found = connection.execute(f"SELECT {lengths} FROM {quoted(table)}").fetchone()
            longest += [length or 0 for length in found]
        if len(longest) == 1:
            raise _error(path, "has no table")
    except OSError as error:
        message = f"eval.format.table: cannot be read: {error.strerror}"
        raise _error(path, message) from error
    except (sqlite3.Error, UnicodeEncodeError) as error:
        raise _error(path, f"SQLite cannot read it: {error}") from error
    except MemoryError as error:
        raise _error(path, f"more than the {MAX_BYTES:,} bytes that SQLite may take") from error
    return Database(connection, MAX_STEPS, max(longest))


def _copy(path: Path, connection: sqlite3.Connection) -> None:
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size:
        raise _error(
            path, f"some of its rows are in {log.name}; close the program that has it open"
        )
    # Immutable: no lock on the file.
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as source:
        source.backup(connection)


def _columns(name: str) -> dict[str, list[Value]]:
    """Column → its values; lists and objects as JSON, dates as texts, true as 1."""
    if data_suffix(name) is None:
        what = "neither csv, tsv, jsonl, json nor parquet, and not an SQLite file"
        raise _error(Path(name), what)
    rows = []
    for row in itertools.islice(read_rows(name), MAX_FILE_ROWS + 1):
        if isinstance(row, RejectedRow):
            raise _error(Path(name), f"unreadable row: {row.reason}", row.origin.line)
        rows.append(row.fields)
    if not rows or len(rows) > MAX_FILE_ROWS:
        raise _error(Path(name), f"more than {MAX_FILE_ROWS:,} rows" if rows else "has no row")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_stored(row.get(name)) for row in rows] for name in names}


def _stored(value: Any) -> Value:
    if isinstance(value, int):
        return value if abs(value) < 2**63 else float(value)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value if value is None or isinstance(value, str | bytes | float) else str(value)


def _fill(
    connection: sqlite3.Connection, table: str, columns: dict[str, list[Value]], suffix: str | None
) -> None:
    """Create the table; a column is NUMERIC if all values are numbers; 007 is a code."""
    declared = []
    for name, values in columns.items():
        known = [value for value in values if value not in (None, "")]
        kinds = {"TEXT" if isinstance(value, str) else "NUMERIC" for value in known}
        if suffix in (".csv", ".tsv") and known and all(NUMBER.fullmatch(str(v)) for v in known):
            kinds = {"NUMERIC"}
            columns[name] = [None if value == "" else value for value in values]
        declared.append(f"{quoted(name)} {kinds.pop() if len(kinds) == 1 else ''}")
    connection.execute(f"CREATE TABLE {quoted(table)} ({', '.join(declared)})")
    insert = f"INSERT INTO {quoted(table)} VALUES ({', '.join('?' * len(columns))})"
    connection.execute("BEGIN")
    connection.executemany(insert, zip(*columns.values(), strict=True))
    connection.execute("COMMIT")


def _error(path: Path, message: str, line: int | None = None) -> DataError:
    return DataError("answer_table", message, file=shown_path(path), line=line)


def has_tables(text: str) -> bool:
    """Whether a text has a CREATE TABLE that SQLite accepts."""
    return bool(create_statements(text))


def create_statements(text: str) -> list[str]:
    """The CREATE TABLE statements of a text, each up to where SQLite calls it complete."""
    connection, accepted = in_memory(), []
    # CREATE TABLE … AS SELECT would run a query.
    connection.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_SELECT else 0
    )
    for start in itertools.islice(CREATE.finditer(text), MAX_TABLES):
        rest = text[start.end() : start.end() + MAX_STATEMENT_CHARACTERS]
        for bracket in re.finditer(r"\)", rest):
            statement = f"CREATE {rest[: bracket.end()]}"
            try:
                connection.execute(statement)
            except QUERY_ERRORS as error:
                if "incomplete input" in str(error) or "unrecognized token" in str(error):
                    continue
            else:
                accepted.append(statement)
            break
    return accepted


def generated_database(
    statements: Sequence[str], reference: Sequence[Token], number: int
) -> Database:
    """Tables with the reference's literals, values near them, and others; deterministic."""
    connection = in_memory()
    for statement in statements:
        connection.execute(statement)
    connection.execute("PRAGMA ignore_check_constraints=ON")
    rng = Random(f"{[token.text for token in reference]} {number}")
    mutated, tables = MUTATED[number % len(MUTATED)], columns_of(connection)
    names = {name.lower() for columns in tables.values() for name, *_ in columns}
    compared = _literals(reference, names)
    every = [literal for own in compared.values() for _, literal in own]
    # Single rows, duplicates, and groups of about the size that a HAVING asks for.
    counts = {literal for _, literal in compared.get("", ())}
    sizes = [size for size in range(1, LARGEST_GROUP + 1) if size in counts]
    copies = [*[1] * ROWS, 2, *(size + more for size in sizes for more in (-1, 0, 1))]
    for table, columns in tables.items():
        pools: list[tuple[list[Value], list[Value]]] = []
        is_numbered = sum(is_key for *_, is_key in columns) == 1
        for name, kind, is_key in columns:
            own = compared.get(name.lower(), ())
            if is_numbered and is_key and kind.upper() == "INTEGER" and not own:
                pools.append(([None], [None]))  # SQLite numbers the rows
                continue
            unused = _unused_values(name, kind, rng)
            near = [value for _, literal in own for value in near_values(literal)] * 10
            others = [*near, *unused[:8], *every, None]
            pools.append(([matching_value(*each) for each in own] or unused, others))
        insert = f"INSERT INTO {quoted(table)} VALUES ({', '.join('?' * len(columns))})"
        for count in copies:
            row = [rng.choice(pool[rng.random() < mutated]) for pool in pools]
            for _ in range(count):
                # Without rows that a constraint refuses.
                with suppress(*QUERY_ERRORS):
                    connection.execute(insert, row)
    return Database(connection, GENERATED_STEPS)


def _literals(tokens: Sequence[Token], names: set[str]) -> dict[str, list[tuple[str, Literal]]]:
    """Column → operator and literal of each comparison with it; "": of a count.

    A literal belongs to the nearest column before it.
    """
    from sqlglot import TokenType

    found: dict[str, list[tuple[str, Literal]]] = defaultdict(list)
    column, words = "", ["", ""]
    for token in tokens:
        word, is_number = token.text.lower(), token.token_type is TokenType.NUMBER
        if is_number or token.token_type is TokenType.STRING:
            is_negative = is_number and words[-1] == "-"
            value = _number(f"-{word}" if is_negative else word) if is_number else token.text
            of_count = "count" in words[-6:] or words[-1] in ("limit", "offset")
            found["" if of_count else column].append((words[-2 if is_negative else -1], value))
        elif word in names:
            column = word
        words.append(word)
    return found


def _number(text: str) -> Literal:
    with suppress(ValueError):
        number = float(text)
        if abs(number) < LARGEST_NUMBER:
            return int(number) if number.is_integer() and "." not in text else number
    return text


def _unused_values(name: str, kind: str, rng: Random) -> list[Value]:
    """Values that the reference does not name, each in several rows."""
    if re.search(r"(^|_)id$", name, re.IGNORECASE):
        return list(range(1, rng.choice((5, 30))))
    # Few values make groups and ties, many a unique minimum and maximum.
    numbers = [rng.randint(1, 5000) for _ in range(rng.choice((6, 200, 200)))]
    is_text = re.search("CHAR|CLOB|TEXT", kind, re.IGNORECASE) is not None
    if is_text or (not kind and rng.random() < 0.5):
        return [f"{number % 89} {name}" for number in numbers]
    return list(numbers)


def matching_value(operator: str, literal: Literal) -> Value:
    """A value for which this comparison is true."""
    if isinstance(literal, int | float):
        return literal + {">": 1, "<": -1, "<>": 1, "!=": 1}.get(operator, 0)
    if operator == "like":
        return _plain(literal)
    return f"{literal}x" if operator in (">", "<>", "!=") else literal


def near_values(literal: Literal) -> list[Value]:
    """The literal, and values that a query with a small mistake would find."""
    if isinstance(literal, int | float):
        longer = float(f"{literal}7") if isinstance(literal, float) else literal * 10 + 7
        return [literal, literal - 1, literal + 1, literal + 0.5, literal - 0.5, longer, -literal]
    text = _plain(literal)
    case = [text, text.upper(), text.lower(), text.title()]
    return [*case, f"x {text}", f"{text}x", f"{text} x", text[:-1], f"{text[:1]}x{text[2:]}"]


def _plain(pattern: Literal) -> str:
    """A text that a LIKE with this pattern matches."""
    return str(pattern).replace("%", "").replace("_", "x")
