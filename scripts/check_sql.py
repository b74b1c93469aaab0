"""SQL answers by SQLite alone and a reading of their words (for check_scores.py)."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from check_text import Counted

TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<text>'(?:[^']|'')*')
    |(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>\d[\w.]*|<>|!=|<=|>=|==|\|\||<<|>>|.)""",
    re.VERBOSE | re.DOTALL,
)
VERBS = {"select", "values", "insert", "replace", "update", "delete"}
# What SQLite says of a text that is no statement, whatever tables there are.
NO_STATEMENT = ("syntax error", "incomplete input", "unrecognized token", "one statement")
READING = {
    *(sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT),
    *(sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE),
}
REFUSED = {"random", "randomblob", "zeroblob", "load_extension"}
MOST_RESULTS = 10_000
STEPS, STEPS_A_ROW = 5_000_000, 100
MADE_ROWS = "table: prompt makes its own databases"
RUNNING = ("sql_runs", "execution_match", "execution_tested")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?")
SQLITE_MAGIC = b"SQLite format 3\0"
Results = list[tuple[Any, ...]]
Counts = dict[str, Counted]


def sql_rows(
    answers: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    wanted: Mapping[str, Any],
    folder: Path,
    not_checked: dict[str, str],
) -> list[Counts]:
    """What each answer adds; says in `not_checked` which scores are not computed and why."""
    if wanted.get("dialect", "sqlite") != "sqlite":
        why = f"SQLite does not speak {wanted['dialect']}"
        not_checked |= dict.fromkeys(("sql_valid", "sql_match", "format_rate"), why)
        return [{} for _ in answers]
    table = wanted.get("table")
    if table == "prompt":
        not_checked |= dict.fromkeys(RUNNING, MADE_ROWS)
    elif str(table).endswith(".parquet"):
        not_checked |= dict.fromkeys(RUNNING, "parquet is not read here")
    found = [_spelling(*pair) for pair in zip(answers, rows, strict=True)]
    if table is not None and RUNNING[0] not in not_checked:
        tables = _load(folder / table, wanted.get("table_name") or "data")
        tables.database.set_authorizer(_may)
        for counts, answer, row in zip(found, answers, rows, strict=True):
            counts |= _ran(tables, answer, row)
        tables.database.close()
    return found


def _spelling(answer: str, row: Mapping[str, Any]) -> Counts:
    valid = is_query(answer, row["prompt"])
    counts: Counts = {"sql_valid": (float(valid), 1.0), "format_rate": (float(valid), 1.0)}
    if is_query(row["reference"], row["prompt"]):
        alike = valid and _words(answer) == _words(row["reference"])
        counts["sql_match"] = (float(alike), 1.0)
    return counts


def is_query(text: str, prompt: str) -> bool:
    """Whether SQLite reads it as one statement, which begins as a query and asks only to read."""
    if next((verb for verb in _outermost(text) if verb in VERBS), None) != "select":
        return False
    # SQLite may stop at a name that it does not know before it sees a second statement.
    if next(_outermost(text)) not in ("select", "with") or ";" in _words(text):
        return False
    with closing(sqlite3.connect(":memory:")) as database:
        for statement in _declared(prompt):
            try:
                database.execute(statement)
            except sqlite3.Error:
                continue
        return _is_statement(database, text)


def _is_statement(database: sqlite3.Connection, text: str) -> bool:
    database.set_authorizer(_may)
    try:
        database.execute(f"EXPLAIN {text}")
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        said = str(error)
        return said != "not authorized" and not any(word in said for word in NO_STATEMENT)
    return True


def _may(action: int, _: str | None, function: str | None, *__: str | None) -> int:
    """SQLite asks before all that a statement is about to do."""
    refused = action == sqlite3.SQLITE_FUNCTION and (function or "").lower() in REFUSED
    return sqlite3.SQLITE_OK if action in READING and not refused else sqlite3.SQLITE_DENY


def _declared(prompt: str) -> Iterator[str]:
    """Each CREATE TABLE up to the bracket that closes its columns."""
    for match in re.finditer(r"\bcreate\s+table\b", prompt, re.IGNORECASE):
        depth = 0
        for token in TOKEN.finditer(prompt, match.start()):
            depth += {"(": 1, ")": -1}.get(token[0], 0)
            if token[0] == ")" and depth == 0:
                yield prompt[match.start() : token.end()]
                break


def _words(text: str) -> list[str]:
    """Words, signs and texts: case and quotes of names, space and comments taken off."""
    found = []
    for token in TOKEN.finditer(text):
        if token.lastgroup == "name":
            quote = token[0][-1]
            found.append(token[0][1:-1].replace(quote * 2, quote).lower())
        elif token.lastgroup != "space":
            found.append(token[0] if token.lastgroup == "text" else token[0].lower())
    while found and found[-1] == ";":
        found.pop()
    return found


def _outermost(text: str) -> Iterator[str]:
    """Words that no bracket holds."""
    depth = 0
    for token in TOKEN.finditer(text):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0 and token.lastgroup == "word":
            yield token[0].lower()


def _ran(tables: Tables, answer: str, row: Mapping[str, Any]) -> Counts:
    wanted = _run(tables, row["reference"]) if is_query(row["reference"], "") else None
    if wanted is None or all(value is None for each in wanted for value in each):
        return {"execution_tested": (0.0, 1.0)}
    found = _run(tables, answer) if is_query(answer, "") else None
    words = list(_outermost(row["reference"]))
    ordered = ("order", "by") in itertools.pairwise(words)
    same = found is not None and _same(found, wanted, ordered=ordered)
    return {
        "execution_tested": (1.0, 1.0),
        "sql_runs": (float(found is not None), 1.0),
        "execution_match": (float(same), 1.0),
    }


def _same(found: Results, wanted: Results, *, ordered: bool) -> bool:
    ours, theirs = ([tuple(map(_rounded, row)) for row in rows] for rows in (found, wanted))
    return ours == theirs if ordered else Counter(ours) == Counter(theirs)


def _rounded(value: Any) -> Any:
    """Nine digits of a number."""
    return float(f"{value:.9g}") if isinstance(value, int | float) else value


def _run(tables: Tables, query: str) -> Results | None:
    """Its rows; none where it does not run, or does not end soon."""
    looks = iter(range((STEPS + STEPS_A_ROW * tables.rows) // 1000))
    tables.database.set_progress_handler(lambda: int(next(looks, None) is None), 1000)
    try:
        found = tables.database.execute(query).fetchmany(MOST_RESULTS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError):
        return None
    return found if len(found) <= MOST_RESULTS else None


@dataclass(frozen=True)
class Tables:
    """What queries run on."""

    database: sqlite3.Connection
    rows: int


def _load(path: Path, name: str) -> Tables:
    """The rows of a file as one table, or the tables of an SQLite file."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    with path.open("rb") as file:
        if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
            return _copied(path, database)
    rows, kinds = (_csv if path.suffix in (".csv", ".tsv") else _json)(
        path.read_text(encoding="utf-8-sig")
    )
    columns = ", ".join(f'"{key}" {kind}' for key, kind in kinds.items())
    database.execute(f'CREATE TABLE "{name}" ({columns})')
    values = [[_stored(row.get(key)) for key in kinds] for row in rows]
    database.executemany(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(kinds))})', values)
    return Tables(database, len(rows))


def _copied(path: Path, database: sqlite3.Connection) -> Tables:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source:
        source.backup(database)
    names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    counts = [database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in names]
    return Tables(database, sum(counts))


Rows = list[dict[str, Any]]


def _csv(text: str) -> tuple[Rows, dict[str, str]]:
    """Numbers where every value of a column that is not empty is written as one."""
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    rows: Rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    kinds = {}
    for key in rows[0]:
        told = [row[key] for row in rows if row[key]]
        numbers = bool(told) and all(NUMBER.fullmatch(value) for value in told)
        kinds[key] = "NUMERIC" if numbers else "TEXT"
    numeric = {key for key, kind in kinds.items() if kind == "NUMERIC"}
    return [{k: (v or None) if k in numeric else v for k, v in r.items()} for r in rows], kinds


def _json(text: str) -> tuple[Rows, dict[str, str]]:
    """An array, `{"data": […]}` or one object a line."""
    try:
        found = json.loads(text)
        rows: Rows = found["data"] if isinstance(found, dict) and "data" in found else found
    except ValueError:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    kinds = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        types = {type(row[key]) for row in rows if row.get(key) is not None}
        numbers = bool(types) and types <= {int, float, bool}
        kinds[key] = "NUMERIC" if numbers else "TEXT" if types == {str} else ""
    return rows, kinds


def _stored(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
