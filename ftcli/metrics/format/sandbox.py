"""SQLite in memory, for queries that anybody may have written: they read, and end.

Limits are counts, of steps and of SQLite's own bytes, so that the same query gets the same answer
on every machine; a clock stands only behind them. Nothing is written, attached, loaded or set:
SQLite asks before each of these.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Instructions of SQLite's machine: a join of two tables of a thousand rows takes 5 million.
MOST_STEPS = 5_000_000
STEPS_BETWEEN_LOOKS = 1000
MOST_SECONDS = 10.0
MOST_ROWS = 10_000
# Characters and numbers of a result, together.
LARGEST_RESULT = 2_000_000
LONGEST_QUERY = 20_000
# Characters of a value that a query makes; those of a table are let through.
LONGEST_VALUE = 2_000
# What queries may take beside the tables: intermediate results, and sorts of them. Half a million
# rows of the longest value would have a gigabyte.
MOST_QUERY_BYTES = 256_000_000

# Documented in sqlite3.h: codes of what SQLite is about to do.
READS = {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE}
# What makes large values of nothing, gives another result each time, or reaches out of the memory.
REFUSED_FUNCTIONS = {
    *("load_extension", "random", "randomblob", "zeroblob", "readfile", "writefile", "edit"),
    *("sqlite_compileoption_get", "sqlite_compileoption_used", "fts3_tokenizer"),
}
LIMITS = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 2 * LONGEST_QUERY,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 500,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}
# What Python and SQLite raise for a query, whatever is wrong with it.
REFUSALS = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError)
# What its messages hold where a text is no statement at all, whatever tables there are.
SYNTAX_FAULTS = (
    *("syntax error", "incomplete input", "unrecognized token", "one statement"),
    *("parser stack overflow", "null character", "surrogates"),
)
Value = str | int | float | bytes | None
Row = tuple[Value, ...]


@dataclass(frozen=True)
class Outcome:
    """Rows of a query, or why there are none."""

    rows: tuple[Row, ...] = ()
    fault: str | None = None

    @property
    def says_nothing(self) -> bool:
        """No row, or nothing but NULL, as of any query that finds nothing."""
        return all(value is None for row in self.rows for value in row)

    def same(self, other: Outcome, *, ordered: bool) -> bool:
        """Whether two results hold the same rows; in the same order where it is asked for."""
        if self.fault is not None or other.fault is not None:
            return False
        mine, theirs = [_plain(row) for row in self.rows], [_plain(row) for row in other.rows]
        return mine == theirs if ordered else Counter(mine) == Counter(theirs)


class Sandbox:
    """A database in memory; `fill` it, then `close` it to everything but reading."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self._looks, self._most_looks, self._ends = 0, 0, 0.0

    def close(self, longest_value: int = 0, steps: int = MOST_STEPS) -> Sandbox:
        """From here on only queries run, each for so many steps."""
        for limit, most in LIMITS.items():
            self.connection.setlimit(limit, most)
        longest = max(LONGEST_VALUE, 2 * longest_value)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
        self.connection.execute("PRAGMA temp_store=MEMORY")
        self.connection.execute("PRAGMA trusted_schema=OFF")
        self._limit_memory()
        self.connection.set_authorizer(_allowed)
        self._most_looks = steps // STEPS_BETWEEN_LOOKS
        self.connection.set_progress_handler(self._look, STEPS_BETWEEN_LOOKS)
        return self

    def _limit_memory(self) -> None:
        """For all of SQLite in this process, and once: the limit can be lowered and never raised
        (sqlite.org, "PRAGMA hard_heap_limit"), and the tables that are asked are opened first."""
        (limit,) = self.connection.execute("PRAGMA hard_heap_limit").fetchone()
        if not limit:
            pages, page_bytes = (
                self.connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "page_size")
            )
            most = pages * page_bytes + MOST_QUERY_BYTES
            self.connection.execute(f"PRAGMA hard_heap_limit={most}")

    def run(self, query: str) -> Outcome:
        """One query's result; whatever is wrong with it is said in words."""
        self._looks, self._ends = 0, time.monotonic() + MOST_SECONDS
        try:
            cursor = self.connection.execute(query)
            if cursor.description is None:
                return Outcome(fault="not a query")
            return _fetched(cursor)
        except MemoryError:
            return Outcome(fault="takes too much memory")
        except REFUSALS as error:
            if self._looks > self._most_looks:
                return Outcome(fault="takes too many steps")
            return Outcome(fault=_words(error))

    def syntax_fault(self, query: str) -> str | None:
        """What SQLite's parser says; names that no table has are no fault of the syntax."""
        outcome = self.run(f"EXPLAIN {query}")
        fault = outcome.fault or ""
        refused = fault == "not authorized"  # a statement; of a function it says more
        return fault if refused or any(word in fault for word in SYNTAX_FAULTS) else None

    def _look(self) -> int:
        self._looks += 1
        return int(self._looks > self._most_looks or time.monotonic() > self._ends)


def _allowed(
    action: int, first: str | None, second: str | None, database: str | None, inner: str | None
) -> int:
    if action in READS:
        return sqlite3.SQLITE_OK
    # The second argument is the name of the function.
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in REFUSED_FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _fetched(cursor: sqlite3.Cursor) -> Outcome:
    rows: list[Row] = []
    size = 0
    for row in cursor:
        size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if len(rows) == MOST_ROWS or size > LARGEST_RESULT:
            return Outcome(fault=f"gives more than {MOST_ROWS:,} rows, or very long ones")
        rows.append(row)
    return Outcome(tuple(rows))


def _words(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text[:200]


def _plain(row: Sequence[Value]) -> Row:
    """Sums of the same numbers in another order differ in their last digits."""
    return tuple(float(f"{v:.9g}") if isinstance(v, float) else v for v in row)
