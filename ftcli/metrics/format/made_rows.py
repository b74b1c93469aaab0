"""Small databases made for one row: the tables of its prompt, filled so that queries differ.

After Zhong, Yu and Klein 2020, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites":
two queries are taken for the same when they give the same result on each of several databases. Rows
are made from the reference query alone: some that it finds; such with one value moved just beside a
literal; with a literal in another column; and rows of everything mixed. The same reference gets the
same databases everywhere.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ftcli.metrics.format.hints import Hints, hints_of
from ftcli.metrics.format.named_table import quoted
from ftcli.metrics.format.prompt_tables import Column, Declared, Table
from ftcli.metrics.format.sandbox import REFUSALS, Outcome, Sandbox, Value
from ftcli.metrics.format.sql_text import SqlText

# Databases that are kept, of those that are made: those on which the reference finds something.
DATABASES = 6
MOST_TRIES = 18
FITTING_ROWS = 4
NEAR_VALUES = 8
SWAPPED_ROWS = 4
MIXED_ROWS = 10
SHARE_OF_NULL = 0.12
STEPS = 500_000


@dataclass(frozen=True)
class Trial:
    """One database, and what the reference finds in it."""

    database: Sandbox
    wanted: Outcome


def trials(declared: Declared, reference: SqlText) -> tuple[list[Trial], str | None]:
    """Databases on which the reference finds something; without any, the reason."""
    hints = hints_of(reference.text, reference.tree, declared.tables)
    kept: list[Trial] = []
    fault: str | None = None
    for number in range(MOST_TRIES):
        database = _made(declared, hints, f"{reference.text}\n{number}", number)
        wanted = database.run(reference.text)
        if wanted.fault is not None:
            fault = wanted.fault
        elif not wanted.says_nothing:
            kept.append(Trial(database, wanted))
        if len(kept) == DATABASES or (fault is not None and not kept):
            break
    if kept:
        return kept, None
    return [], fault or "finds nothing in any of the databases made for it"


def _made(declared: Declared, hints: Hints, seed: str, number: int) -> Sandbox:
    sandbox = Sandbox()
    connection = sandbox.connection
    # Rows are made to tell queries apart, not to obey the tables' rules.
    connection.execute("PRAGMA ignore_check_constraints=ON")
    for statement in declared.statements:
        connection.execute(statement)
    for table in declared.tables:
        chance = random.Random(f"{seed}\n{table.name}")
        maker = _Maker(table, hints, chance, number)
        rows = list(maker.rows())
        chance.shuffle(rows)
        places = ", ".join("?" * len(table.columns))
        statement = f"INSERT OR IGNORE INTO {quoted(table.name)} VALUES ({places})"
        _insert(connection, statement, [maker.keyed(row, i) for i, row in enumerate(rows, 1)])
    return sandbox.close(steps=STEPS)


def _insert(connection: sqlite3.Connection, statement: str, rows: list[list[Value]]) -> None:
    for row in rows:
        # A row that the table does not take, such as a text for its key, is left out.
        with suppress(*REFUSALS):
            connection.execute(statement, row)


@dataclass(frozen=True)
class _Maker:
    """Rows of one table."""

    table: Table
    hints: Hints
    chance: random.Random
    number: int

    def rows(self) -> Iterator[list[Value]]:
        columns = self.table.columns
        fitting = [self._fitting_row() for _ in range(FITTING_ROWS)]
        yield from fitting
        yield list(fitting[0])
        # Groups just as large as is asked, and just not.
        for row, more in zip(fitting, (0, -1, -2), strict=False):
            yield from ([list(row)] * max(self.hints.group_rows + more, 0))
        for index, column in enumerate(columns):
            near = self._values(self.hints.near, column)
            self.chance.shuffle(near)
            for value in near[:NEAR_VALUES]:
                yield [*(row := self._fitting_row())[:index], value, *row[index + 1 :]]
        yield from self._swapped()
        for _ in range(MIXED_ROWS):
            yield [self._any(column) for column in columns]

    def keyed(self, row: list[Value], position: int) -> list[Value]:
        """With a key of its own, where the table has one of one column that nothing is asked of."""
        keys = [i for i, column in enumerate(self.table.columns) if column.is_key]
        if len(keys) != 1 or self._values(self.hints.near, self.table.columns[keys[0]]):
            return row
        key = self.table.columns[keys[0]]
        value: Value = f"{key.name} {position}" if key.kind == "text" else position
        return [*row[: keys[0]], value, *row[keys[0] + 1 :]]

    def _fitting_row(self) -> list[Value]:
        return [self._fitting(column) for column in self.table.columns]

    def _swapped(self) -> Iterator[list[Value]]:
        """A literal in a column that the query does not ask it of, and not in its own."""
        literals = [v for c in self.table.columns for v in self._values(self.hints.fitting, c)]
        free = [i for i, c in enumerate(self.table.columns) if not self._asked(c)]
        for index in self.chance.sample(free, min(SWAPPED_ROWS, len(free))) if literals else ():
            row = [self._any(column) for column in self.table.columns]
            yield [*row[:index], self.chance.choice(literals), *row[index + 1 :]]

    def _fitting(self, column: Column) -> Value:
        values = self._values(self.hints.fitting, column)
        if values:
            return self.chance.choice(values)
        return None if self._is_null(column) else self._filler(column)

    def _any(self, column: Column) -> Value:
        if self._is_null(column):
            return None
        near = self._values(self.hints.near, column)
        if near and self.chance.random() < 0.7:
            return self.chance.choice(near)
        return self._filler(column)

    def _is_null(self, column: Column) -> bool:
        return column.may_be_null and self.chance.random() < SHARE_OF_NULL

    def _asked(self, column: Column) -> bool:
        return bool(self._values(self.hints.near, column))

    def _values(self, of: dict[str, list[Value]], column: Column) -> list[Value]:
        """Values for a column, and for those that it is held against."""
        own = column.name.lower()
        leader = self.hints.shared.get(own)
        tied = [name for name, led in self.hints.shared.items() if leader and led == leader]
        return [value for name in dict.fromkeys((own, *tied)) for value in of.get(name, ())]

    def _filler(self, column: Column) -> Value:
        """A value that other rows have too, and other columns have not."""
        name = column.name.lower()
        if name in self.hints.shared or name == "id" or name.endswith("_id"):
            return self.chance.randint(1, 5)
        if self._keeps_numbers(column):
            value = self.chance.choice((self.chance.randint(1, 9), self.chance.randint(10, 5000)))
            whole = column.kind == "integer" or self.chance.random() < 0.6
            return value if whole else value + 0.25
        word = self.chance.choice("abcdefgh")
        return f"{name} {word}" if self.chance.random() < 0.7 else f"{word} {name}".title()

    def _keeps_numbers(self, column: Column) -> bool:
        if column.kind:
            return column.kind != "text"
        # What an untyped column holds is not known: texts in one database, numbers in the next.
        return column.name.lower() in self.hints.summed or self.number % 2 == 1
