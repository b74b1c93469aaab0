"""The tables that a prompt declares: its CREATE TABLE statements, read by SQLite itself."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from ftcli.metrics.format.named_table import TABLES, quoted
from ftcli.metrics.format.sandbox import REFUSALS, Sandbox
from ftcli.metrics.scorer import Question

CREATE = re.compile(
    r"\bCREATE\s+(?:TEMP\s+|TEMPORARY\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?[^(;\n]{1,200}\(",
    re.IGNORECASE,
)
TEMPORARY = re.compile(r"\bTEMP(ORARY)?\s+", re.IGNORECASE)
# What a parenthesis may stand in without being one.
PIECE = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|[()]", re.DOTALL)
MOST_TABLES = 30
MOST_COLUMNS = 200
LONGEST_STATEMENT = 20_000


@dataclass(frozen=True)
class Column:
    """One column, and what kind of values it keeps."""

    name: str
    kind: str
    """SQLite's affinity: integer, real, numeric or text; empty where any value stays itself."""
    may_be_null: bool
    is_key: bool


@dataclass(frozen=True)
class Table:
    """One table of a prompt."""

    name: str
    columns: tuple[Column, ...]
    refers: tuple[tuple[str, str], ...]
    """Foreign keys: column of this table, column of the other."""


@dataclass(frozen=True)
class Declared:
    """Statements that SQLite takes, and the tables that they make."""

    statements: tuple[str, ...]
    tables: tuple[Table, ...]


def declared_tables(prompt: str) -> Declared:
    """Tables of a prompt; a statement that SQLite does not take is left out."""
    sandbox = Sandbox()
    taken = []
    for statement in _statements(prompt):
        try:
            sandbox.connection.execute(statement)
        except REFUSALS:
            continue
        taken.append(statement)
    connection = sandbox.connection
    names = [row[0] for row in connection.execute(TABLES)]
    tables = [_table(connection, name) for name in names]
    connection.close()
    return Declared(tuple(taken), tuple(t for t in tables if len(t.columns) <= MOST_COLUMNS))


def asked_tables(question: Question) -> Declared:
    """Tables of a question: of its last user turn, or of all turns where that declares none."""
    declared = declared_tables(question.prompt)
    return declared if declared.tables else declared_tables(question.conversation)


def _statements(prompt: str) -> Iterator[str]:
    for number, found in enumerate(CREATE.finditer(prompt)):
        end = _closing(prompt, found.end())
        if number < MOST_TABLES and end is not None:
            # A temporary table would stand in a schema of its own.
            yield TEMPORARY.sub("", prompt[found.start() : end], count=1)


def _closing(text: str, start: int) -> int | None:
    """Where the parenthesis that opened before `start` closes."""
    depth = 1
    for piece in PIECE.finditer(text, start, start + LONGEST_STATEMENT):
        depth += {"(": 1, ")": -1}.get(piece.group(), 0)
        if depth == 0:
            return piece.end()
    return None


def _table(connection: sqlite3.Connection, name: str) -> Table:
    columns = [
        Column(column, affinity(kind), not (not_null or key), bool(key))
        for _, column, kind, not_null, _, key in connection.execute(
            f"PRAGMA table_info({quoted(name)})"
        )
    ]
    keys = connection.execute(f"PRAGMA foreign_key_list({quoted(name)})").fetchall()
    # The other column is none where it is that table's key.
    refers = tuple((str(key[3]), str(key[4])) for key in keys if key[4])
    return Table(name, tuple(columns), refers)


def affinity(declared: str) -> str:
    """SQLite's rules for the type that a column is declared with (Datatypes In SQLite, 3.1)."""
    kind = declared.upper()
    if "INT" in kind:
        return "integer"
    if any(word in kind for word in ("CHAR", "CLOB", "TEXT")):
        return "text"
    if not kind or "BLOB" in kind:
        return ""
    if any(word in kind for word in ("REAL", "FLOA", "DOUB")):
        return "real"
    return "numeric"
