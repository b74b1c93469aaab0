"""One answer as SQL: exactly one query, and whether two are spelt alike."""

from __future__ import annotations

import logging
import re
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftcli.metrics.format.part import shown
from ftcli.metrics.format.sandbox import LONGEST_QUERY, Sandbox
from ftcli.metrics.scorer import Finding

if TYPE_CHECKING:
    from sqlglot.expressions import Expression

NOT_SQL = "not SQL"
NOT_A_QUERY = "not a query"
FENCE = re.compile(r"\s*(```[^\n]*)")
# Comments and white space before the first word.
FIRST_WORD = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:select|with)\b", re.DOTALL | re.IGNORECASE)

NOTHING = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)


@dataclass(frozen=True)
class SqlText:
    """A query, or what keeps the text from being one; no tree where only SQLite can read it."""

    text: str
    tree: Expression | None = None
    fault: Finding | None = None


def read_sql_text(text: str, dialect: str) -> SqlText:
    """The whole text as one query.

    sqlglot reads it. For SQLite its own parser has the last word: it knows columns called `for`,
    and refuses some of what sqlglot lets pass.
    """
    fault = _plain_fault(text)
    if fault is not None:
        return SqlText(text, fault=fault)
    trees, unread = _parsed(text, dialect)
    if dialect == "sqlite":
        said = Sandbox().close().syntax_fault(text)
        if said is not None:
            what = _kind_fault(trees) if trees and unread is None else None
            place = (unread.start, unread.end) if unread else (None, None)
            return SqlText(text, fault=what or Finding(NOT_SQL, shown(said), *place))
        if unread is not None and FIRST_WORD.match(text):
            # Without tables SQLite stops at the first name, and says nothing of what stands behind.
            return SqlText(text, fault=_behind_the_query(text))
    if unread is not None:
        return SqlText(text, fault=unread)
    fault = _kind_fault(trees)
    return SqlText(text, None if fault else trees[0], fault)


def spelt_alike(first: SqlText, second: SqlText, dialect: str) -> bool:
    """The same but for case of keywords and names, quotes around names, space and comments."""
    if first.tree is None or second.tree is None:
        return _squeezed(first.text) == _squeezed(second.text)
    return _normal(first.tree, dialect) == _normal(second.tree, dialect)


def is_ordered(query: SqlText) -> bool:
    """Whether the outermost query has an ORDER BY."""
    if query.tree is None:
        return re.search(r"\border\s+by\b", query.text, re.IGNORECASE) is not None
    return query.tree.args.get("order") is not None


def _plain_fault(text: str) -> Finding | None:
    fence = FENCE.match(text)
    if fence:
        message = "in a code fence: a script that runs the whole answer fails on it"
        return Finding(NOT_SQL, message, *fence.span(1))
    if not text.strip():
        return Finding(NOT_SQL, "empty")
    if len(text) > LONGEST_QUERY:
        return Finding(NOT_SQL, f"more than {LONGEST_QUERY:,} characters")
    return None


def _behind_the_query(text: str) -> Finding | None:
    """What follows the statement that ends first, other than white space and comments."""
    for mark in re.finditer(";", text):
        if sqlite3.complete_statement(text[: mark.end()]):
            if NOTHING.fullmatch(text, mark.end()):
                return None
            message = "text behind the query, which a script would run too"
            return Finding(NOT_A_QUERY, message, mark.end(), len(text))
    return None


def _parsed(text: str, dialect: str) -> tuple[list[Expression], Finding | None]:
    """Statements of a text, or what sqlglot cannot read."""
    import sqlglot
    from sqlglot.errors import ParseError, SqlglotError
    from sqlglot.expressions import Expression, Semicolon

    # It warns where it takes a statement as a whole, which is none of our queries then.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    try:
        statements = sqlglot.parse(text, dialect=dialect)
    except ParseError as error:
        return [], _parse_finding(text, error)
    # The others escape its own code on texts that are no SQL at all.
    except (SqlglotError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as e:
        return [], Finding(NOT_SQL, shown(_first_line(e) or type(e).__name__))
    kept = [s for s in statements if isinstance(s, Expression) and not isinstance(s, Semicolon)]
    return kept, None if kept else Finding(NOT_SQL, "holds no statement")


def _parse_finding(text: str, error: Exception) -> Finding:
    details = getattr(error, "errors", [])
    if not details or not details[0].get("line"):
        return Finding(NOT_SQL, shown(_first_line(error)))
    first = details[0]
    lines = text.split("\n")[: first["line"]]
    # `col` is where the token ends, counted from 1.
    end = sum(len(line) + 1 for line in lines[:-1]) + first["col"]
    start = end - len(first.get("highlight") or "")
    message = shown(str(first.get("description") or _first_line(error)).rstrip(". "))
    if not 0 <= start < end <= len(text):
        return Finding(NOT_SQL, message)
    return Finding(NOT_SQL, message, start, end)


def _kind_fault(trees: list[Expression]) -> Finding | None:
    from sqlglot import expressions

    if len(trees) > 1:
        return Finding(NOT_A_QUERY, f"{len(trees)} statements, where one query is asked for")
    tree: Expression | None = trees[0]
    while isinstance(tree, expressions.Subquery):
        tree = tree.this
    if not isinstance(tree, expressions.Select | expressions.SetOperation):
        what = type(trees[0]).__name__.upper()
        return Finding(NOT_A_QUERY, f"{what}, where a SELECT is asked for")
    writing = tree.find(expressions.DML, expressions.Create, expressions.Command, expressions.Into)
    if writing is not None:
        return Finding(NOT_A_QUERY, f"writes ({type(writing).__name__.upper()})")
    return None


def _normal(tree: Expression, dialect: str) -> str:
    from sqlglot.expressions import Identifier
    from sqlglot.optimizer.normalize_identifiers import normalize_identifiers

    copy = normalize_identifiers(tree.copy(), dialect=dialect)
    for identifier in copy.find_all(Identifier):
        identifier.set("quoted", False)
    return copy.sql(dialect=dialect, comments=False)


def _squeezed(text: str) -> str:
    """Lower case and one space at a time, but within quotes."""
    parts = re.split(r"('(?:[^']|'')*')", text.strip().rstrip("; \n\t"))
    return "".join(
        part if index % 2 else re.sub(r"\s+", " ", part).lower() for index, part in enumerate(parts)
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
