"""What a query says of the values that tell it from others: its literals, column by column."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftcli.metrics.format.prompt_tables import Table
from ftcli.metrics.format.sandbox import Value

if TYPE_CHECKING:
    from sqlglot.expressions import Expression

# Where sqlglot cannot read a query: a name, a sign, a literal.
COMPARED = re.compile(
    r"""(\w+|"[^"]+")\s*(=|<>|!=|<=|>=|<|>|LIKE)\s*('(?:[^']|'')*'|-?\d+(?:\.\d+)?)""",
    re.IGNORECASE,
)
YEAR_OR_MONTH = re.compile(r"\d{4}(-\d\d)?")
MOST_LITERALS = 40
LARGEST_GROUP = 50
# SQLite's whole numbers have 8 bytes.
LARGEST_NUMBER = 10**17


@dataclass(frozen=True)
class Hints:
    """Values for columns, by their names in lower case."""

    fitting: dict[str, list[Value]]
    """Values with which one of the query's comparisons holds."""
    near: dict[str, list[Value]]
    """The literals themselves and values just beside them."""
    shared: dict[str, str]
    """Columns that are held against each other → one name for all of them."""
    summed: frozenset[str]
    """Columns that are reckoned with."""
    group_rows: int
    """How many rows a group is asked to have, where it is; else 0."""


def hints_of(query: str, tree: Expression | None, tables: Iterable[Table]) -> Hints:
    """Hints of a query on these tables."""
    fitting: dict[str, list[Value]] = defaultdict(list)
    near: dict[str, list[Value]] = defaultdict(list)
    found = _compared(tree) if tree is not None else _compared_in_text(query)
    for column, sign, literal in list(found)[:MOST_LITERALS]:
        fitting[column].append(_fits(sign, literal))
        near[column] += _beside(literal)
    pairs = [pair for table in tables for pair in table.refers]
    pairs += list(_held_together(tree)) if tree is not None else []
    summed = frozenset(_summed(tree)) if tree is not None else frozenset()
    group_rows = max(_counted(tree), default=0) if tree is not None else 0
    return Hints(dict(fitting), dict(near), _classes(pairs), summed, group_rows)


def _compared(tree: Expression) -> Iterator[tuple[str, str, Value]]:
    """Column, sign and literal of each comparison, wherever it stands."""
    from sqlglot import expressions as e

    signs: dict[type[e.Expression], str] = {e.EQ: "=", e.NEQ: "<>", e.GT: ">", e.GTE: ">="}
    signs |= {e.LT: "<", e.LTE: "<=", e.Like: "like", e.In: "=", e.Between: "="}
    turned = {">": "<", ">=": "<=", "<": ">", "<=": ">="}
    for node in tree.find_all(*signs):
        sign = signs[type(node)]
        if isinstance(node.this, e.Literal | e.Neg):
            sign = turned.get(sign, sign)
        columns = {column.name.lower() for column in node.find_all(e.Column)}
        literals = [_value(literal) for literal in node.find_all(e.Literal)]
        for column in sorted(columns):
            yield from ((column, sign, literal) for literal in literals)


def _compared_in_text(query: str) -> Iterator[tuple[str, str, Value]]:
    for name, sign, literal in COMPARED.findall(query):
        value: Value = literal[1:-1].replace("''", "'")
        if not literal.startswith("'") and len(literal) < len(str(LARGEST_NUMBER)):
            value = float(literal) if "." in literal else int(literal)
        yield name.strip('"').lower(), sign.lower(), value


def _value(literal: Expression) -> Value:
    from sqlglot.expressions import Neg

    text = str(literal.this)
    if literal.args.get("is_string"):
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    if not abs(number) < LARGEST_NUMBER:
        return text
    sign = -1 if isinstance(literal.parent, Neg) else 1
    return sign * (int(text) if text.isdecimal() else number)


def _held_together(tree: Expression) -> Iterator[tuple[str, str]]:
    from sqlglot.expressions import EQ, Column, Join

    for node in tree.find_all(EQ):
        if isinstance(node.left, Column) and isinstance(node.right, Column):
            yield node.left.name, node.right.name
    for join in tree.find_all(Join):
        for column in join.args.get("using") or ():
            yield column.name, column.name


def _summed(tree: Expression) -> Iterator[str]:
    from sqlglot import expressions as e

    for node in tree.find_all(e.Sum, e.Avg, e.Add, e.Sub, e.Mul, e.Div, e.Mod, e.Round, e.Abs):
        yield from (column.name.lower() for column in node.find_all(e.Column))


def _counted(tree: Expression) -> Iterator[int]:
    """Literals that a count is held against."""
    from sqlglot import expressions as e

    for node in tree.find_all(e.EQ, e.NEQ, e.GT, e.GTE, e.LT, e.LTE, e.Between):
        if node.find(e.Count) is not None:
            values = [_value(literal) for literal in node.find_all(e.Literal)]
            yield from (v for v in values if isinstance(v, int) and 0 < v <= LARGEST_GROUP)


def _classes(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names that are tied by pairs, however far → the first name of their class."""
    leader: dict[str, str] = {}
    for first, second in pairs:
        one, other = (leader.setdefault(name.lower(), name.lower()) for name in (first, second))
        leader = {name: one if led == other else led for name, led in leader.items()}
    return leader


def _fits(sign: str, literal: Value) -> Value:
    """A value that stands in this relation to the literal."""
    if isinstance(literal, int | float):
        return literal + {">": 1, "<>": 1, "!=": 1, "<": -1}.get(sign, 0)
    text = str(literal)
    if sign == "like":
        return text.replace("%", "").replace("_", "x")
    return {">": text + "m", "<>": text + "x", "!=": text + "x", "<": text[:-1]}.get(sign, text)


def _beside(literal: Value) -> list[Value]:
    """The literal and its neighbours: what a query with a small mistake would find instead."""
    if isinstance(literal, int | float):
        longer = [
            float(f"{literal}7") if isinstance(literal, float) else 10 * literal + 7,
            -literal,
        ]
        return [literal, literal - 1, literal + 1, literal + 0.5, literal - 0.5, *longer, 0]
    text = str(literal).replace("%", "").replace("_", "x")
    values: list[Value] = [text, text.upper(), text.lower(), text.title()]
    values += [
        f"{text} x",
        f"x {text}",
        f"{text}x",
        text[:-1],
        f"{text[:1]}x{text[2:]}",
        f"{text}m",
    ]
    if YEAR_OR_MONTH.fullmatch(text):
        values += [f"{text}-05-17"[:10], f"{text}-11-02"[:10]]
    return list(dict.fromkeys(values))
