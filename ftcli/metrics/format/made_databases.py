"""Databases made for one row: the tables of its prompt, filled from the reference's literals.

After Zhong, Yu and Klein 2020, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites":
queries count as the same where they have the same result on each of several databases.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from ftcli.metrics.format.sql_databases import (
    QUERY_ERRORS,
    Database,
    Value,
    columns_of,
    in_memory,
    quoted,
)

if TYPE_CHECKING:
    from sqlglot import Token

# A name and a bracket: CREATE TABLE … AS SELECT would run a query.
CREATE = re.compile(
    r"\bCREATE\s+(?:TEMP(?:ORARY)?\s+)?(?=TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    r"""(?:"[^"]*"|`[^`]*`|\[[^\]]*\]|[\w.]+)\s*\()""",
    re.IGNORECASE,
)
LONGEST_STATEMENT = 20_000
MOST_TABLES = 30
MOST_STEPS = 500_000
ROWS = 40
# Share of the values that are mutated: of three databases, of the next three, of the next.
MUTATED = (0.4, 0.6, 0.85)
LARGEST_GROUP = 20
# SQLite's whole numbers have 8 bytes.
LARGEST_NUMBER = 10**17
Literals = Mapping[str, Sequence[tuple[str, Value]]]
"""Column in lower case → operator and literal of each comparison with it; "": of a count."""


def has_tables(text: str) -> bool:
    """Whether a text holds a CREATE TABLE that SQLite accepts."""
    return bool(create_statements(text))


def create_statements(text: str) -> list[str]:
    """The CREATE TABLE statements of a text, each up to where SQLite finds it complete."""
    connection = in_memory()
    accepted = []
    starts = [match.end() for match in CREATE.finditer(text)][:MOST_TABLES]
    for start, stop in zip(starts, [*starts[1:], len(text)], strict=False):
        for bracket in re.finditer(r"\)", text[start : min(stop, start + LONGEST_STATEMENT)]):
            statement = f"CREATE {text[start : start + bracket.end()]}"
            try:
                connection.execute(statement)
            except QUERY_ERRORS as error:
                if "incomplete input" in str(error) or "unrecognized token" in str(error):
                    continue
            else:
                accepted.append(statement)
            break
    return accepted


def literals_of(tokens: Sequence[Token], statements: Sequence[str]) -> Literals:
    """The literals of a query; each belongs to the nearest column before it, or else after it."""
    from sqlglot import TokenType

    connection = in_memory()
    for statement in statements:
        connection.execute(statement)
    names = {name.lower() for table in columns_of(connection).values() for name, *_ in table}
    found: dict[str, list[tuple[str, Value]]] = defaultdict(list)
    words = [token.text.lower() for token in tokens]
    for index, token in enumerate(tokens):
        if token.token_type not in (TokenType.STRING, TokenType.NUMBER):
            continue
        column = next((w for w in (*reversed(words[:index]), *words[index:]) if w in names), "")
        value: Value = token.text
        if token.token_type is TokenType.NUMBER:
            with suppress(ValueError):
                number = float(token.text)
                if abs(number) < LARGEST_NUMBER:
                    value = int(number) if token.text.isdecimal() else number
        operator = words[index - 1]
        if operator == "-" and isinstance(value, int | float):
            value, operator = -value, words[index - 2]
        if operator in ("limit", "offset") or "count" in words[max(index - 6, 0) : index]:
            column = ""
        found[column].append((operator.upper(), value))
    return found


def made_database(
    statements: Sequence[str], literals: Literals, seed: str, number: int
) -> Database:
    """Each table with about 40 rows, always the same for the same arguments.

    Databases of three successive numbers hold other mutations.
    """
    connection = in_memory()
    connection.execute("PRAGMA ignore_check_constraints=ON")
    for statement in statements:
        connection.execute(statement)
    chance = Random(f"{seed}\n{number}")
    mutated = MUTATED[number // 3 % 3]
    nulls = [None] * (number % 2 * 3)
    every = [literal for compared in literals.values() for _, literal in compared]
    counted = {literal for _, literal in literals.get("", ())}
    sizes = [n for n in range(1, LARGEST_GROUP + 1) if n in counted]
    # Rows, equal rows, and groups about as large as a HAVING wants them.
    copies = [*[1] * ROWS, 2, *(size + more for size in sizes for more in (-1, 0, 1))]
    for table, columns in columns_of(connection).items():
        pools = []
        for name, kind, _ in columns:
            compared = literals.get(name.lower(), ())
            unused = _unused_values(name, kind, chance)
            near = [v for _, literal in compared for v in neighbours(literal)[number % 3 :: 3]]
            fits = [fitting(*each) for each in compared] or unused
            pools.append((fits, [*near * 8, *unused[:8], *every, *nulls]))
        rows: list[list[Value]] = []
        for count in copies:
            row = [chance.choice(pool[chance.random() < mutated]) for pool in pools]
            rows += [list(row) for _ in range(count)]
        chance.shuffle(rows)
        keys = [index for index, (name, _, is_key) in enumerate(columns) if is_key]
        insert = f"INSERT INTO {quoted(table)} VALUES ({', '.join('?' * len(columns))})"
        for position, row in enumerate(rows, 1):
            if len(keys) == 1 and columns[keys[0]][0].lower() not in literals:
                row[keys[0]] = position
            # A row that a constraint refuses is left out.
            with suppress(*QUERY_ERRORS):
                connection.execute(insert, row)
    return Database(connection, MOST_STEPS)


def _unused_values(name: str, kind: str, chance: Random) -> list[Value]:
    """Values that the reference does not name, and that several rows have."""
    if name.lower() == "id" or name.lower().endswith("_id"):
        return list(range(1, chance.choice((5, 30))))
    # Few values make groups and ties, many make a single least and greatest row.
    numbers = [chance.randint(1, 5000) for _ in range(chance.choice((6, 200, 200)))]
    is_text = re.search("CHAR|CLOB|TEXT", kind, re.IGNORECASE) is not None
    if is_text or (not kind and chance.random() < 0.5):
        return [f"{number % 89} {name}" for number in numbers]
    return list(numbers)


def fitting(operator: str, literal: Value) -> Value:
    """A value for which this comparison holds."""
    if isinstance(literal, int | float):
        return literal + {">": 1, "<": -1, "<>": 1, "!=": 1}.get(operator, 0)
    text = str(literal)
    if operator == "LIKE":
        return text.replace("%", "").replace("_", "x")
    other = f"{text}x"
    return {">": other, "<": text[:-1], "<>": other, "!=": other}.get(operator, text)


def neighbours(literal: Value) -> list[Value]:
    """Values that a query with a small mistake in this literal would find."""
    if isinstance(literal, int | float):
        digits = float(f"{literal}7") if isinstance(literal, float) else literal * 10 + 7
        near = [literal - 1, literal + 1, literal + 0.5, literal - 0.5, digits, -literal]
        return [literal, literal, literal, *near]
    text = str(literal).replace("%", "").replace("_", "x")
    case = [text, text.upper(), text.lower(), text.title()]
    longer, cut, other = [f"{text}x", f"{text} x"], text[:-1], f"{text[:1]}x{text[2:]}"
    return list(dict.fromkeys([*case, f"x {text}", *longer, cut, other]))
