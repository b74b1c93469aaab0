"""SQL answers: a single read-only query, compared with the reference by spelling and result."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from ftcli.config.answer_format import PROMPT
from ftcli.config.recipe import SqlFormat
from ftcli.console import counted
from ftcli.evaluation.scorers.scorer import ExampleResult, Finding, Question, ScoreKind
from ftcli.evaluation.scorers.sql_databases import (
    MAX_STEPS,
    Database,
    Result,
    create_statements,
    file_database,
    generated_database,
    in_memory,
)
from ftcli.shell import shown_source

if TYPE_CHECKING:
    from sqlglot import Token
    from sqlglot.expressions import Expression

MAX_QUERY_CHARACTERS = 20_000
# Databases per row in which the reference finds something, and attempts to generate them.
GENERATED_DATABASES = 9
MAX_TRIES = 27
# SQLite's messages for syntax errors, which do not depend on tables.
SYNTAX_ERRORS = (
    *("syntax error", "incomplete input", "unrecognized token", "one statement"),
    *("parser stack overflow", "null character", "surrogates"),
)
SYNONYMS = {"==": "=", "<>": "!="}
Databases = list[tuple[Database, Result]]
"""Each with the result of the reference."""


@dataclass(frozen=True)
class Query:
    """A parsed query, or its fault; without a tree if only SQLite can parse it."""

    text: str
    tokens: list[Token] = field(default_factory=list)
    tree: Expression | None = None
    fault: Finding | None = None

    @property
    def is_ordered(self) -> bool:
        """Whether the outermost query has an ORDER BY."""
        if self.tree is None:
            return re.search(r"\border\s+by\b", self.text, re.IGNORECASE) is not None
        return self.tree.args.get("order") is not None

    @property
    def spelling(self) -> list[tuple[bool, str]]:
        """Ignores the case of keywords and names, quotes of names, white space and comments."""
        from sqlglot import TokenType

        found = []
        for token in self.tokens:
            is_string, word = token.token_type is TokenType.STRING, token.text.lower()
            found.append((is_string, token.text if is_string else SYNONYMS.get(word, word)))
        return found


def read_query(text: str, dialect: str) -> Query:
    """Parse the whole text as one query.

    sqlglot parses it, and for SQLite its own parser too: it accepts columns named `for`, and
    refuses some of what sqlglot accepts.
    """
    import sqlglot
    from sqlglot import TokenType
    from sqlglot.errors import SqlglotError

    # sqlglot warns of statements that it does not fully parse.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    if text.lstrip().startswith("```"):
        return _no_query(text, "in a code fence: a database fails on it")
    if len(text) > MAX_QUERY_CHARACTERS:
        return _no_query(text, f"more than {MAX_QUERY_CHARACTERS:,} characters")
    tokens: list[Token] = []
    try:
        tokens = sqlglot.tokenize(text, read=dialect)
        while tokens and tokens[-1].token_type is TokenType.SEMICOLON:
            tokens.pop()
        if not tokens:
            return _no_query(text, "empty")
        text = text[: tokens[-1].end + 1]
        if any(token.token_type is TokenType.SEMICOLON for token in tokens):
            return Query(text, fault=Finding("not a query", "more than one statement"))
        tree = cast("Expression", sqlglot.parse_one(text, dialect=dialect))
    # sqlglot raises these for texts that are not SQL.
    except (SqlglotError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as e:
        failed = _no_query(text, (str(e) or type(e).__name__).splitlines()[0])
        if dialect != "sqlite":
            return failed
        is_select = bool(tokens) and tokens[0].text.upper() in ("SELECT", "WITH")
        fault = _sqlite_fault(text) or (None if is_select else failed.fault)
        return Query(text, tokens, fault=fault)
    fault = _kind_fault(tree) or (_sqlite_fault(text) if dialect == "sqlite" else None)
    return Query(text, tokens, tree, fault)


def _no_query(text: str, why: str) -> Query:
    return Query(text, fault=Finding("not SQL", why))


def _sqlite_fault(text: str) -> Finding | None:
    message = Database(in_memory(), MAX_STEPS).run(f"EXPLAIN {text}").fault or ""
    is_syntax = any(words in message for words in SYNTAX_ERRORS)
    return Finding("not SQL", message) if is_syntax else None


def _kind_fault(tree: Expression) -> Finding | None:
    from sqlglot import expressions

    query = tree.unnest()
    if not isinstance(query, expressions.Select | expressions.SetOperation):
        return Finding("not a query", f"{type(tree).__name__.upper()}, expected a SELECT")
    writing = query.find(expressions.DML, expressions.Create, expressions.Command, expressions.Into)
    what = f"writes ({type(writing).__name__.upper()})"
    return None if writing is None else Finding("not a query", what)


@dataclass(frozen=True)
class SqlScorer:
    """The whole answer must be one query; its result on tables is compared with the reference's."""

    dialect: str
    table: str | None
    """From the recipe: a file, or the word prompt."""
    database: Database | None
    """Of the file."""
    untested: dict[Question, str] = field(default_factory=dict)
    """Questions scored so far → why their result cannot be compared; empty: it can."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        labels = {"sql_valid": "one SQL query", "sql_match": "spelt as the reference"}
        if self.table is not None:
            labels |= {"sql_runs": "runs on the table", "execution_match": "same result"}
        kinds = {name: ScoreKind(label, "share", "higher") for name, label in labels.items()}
        if self.table is not None:
            kinds["execution_tested"] = ScoreKind("rows with a testable result", "share", None)
        return kinds

    def score(self, answer: str, question: Question) -> ExampleResult:
        query = read_query(answer, self.dialect)
        reference = read_query(question.reference, self.dialect)
        valid = (float(query.fault is None), 1.0)
        counts = {"format_rate": valid, "sql_valid": valid}
        findings = [query.fault] if query.fault else []
        databases: Databases = []
        if reference.fault is not None:
            why = f"the reference is not a query ({reference.fault.message}): not counted"
            findings.append(Finding("reference", why))
        else:
            equal = query.fault is None and query.spelling == reference.spelling
            counts["sql_match"] = (float(equal), 1.0)
            if self.table is not None:
                databases, why = self._databases(reference, question)
                self.untested[question] = why
                if not databases:
                    findings.append(Finding("reference", f"{why}: not counted"))
        if self.table is not None:
            counts["execution_tested"] = (float(bool(databases)), 1.0)
        if databases:
            fault = _execution_fault(query, reference, databases)
            counts["sql_runs"] = (float(fault is None or fault.kind == "other result"), 1.0)
            counts["execution_match"] = (float(fault is None), 1.0)
            if fault is not None and query.fault is None:
                findings.append(fault)
        return ExampleResult(counts, tuple(findings))

    def _databases(self, reference: Query, question: Question) -> tuple[Databases, str]:
        """Databases in which the reference finds something; if there are none, the reason."""
        kept: Databases = []
        why = "its prompt has no CREATE TABLE"
        for database in self._candidates(reference, question):
            result = database.run(reference.text)
            if result.fault is not None and not kept:
                return [], f"the reference does not run: {result.fault}"
            why = "the reference finds nothing in the tables, as a wrong query might"
            if result.fault is None and not result.is_empty:
                kept.append((database, result))
            if len(kept) == GENERATED_DATABASES:
                break
        return kept, "" if kept else why

    def _candidates(self, reference: Query, question: Question) -> Iterator[Database]:
        if self.database is not None:
            yield self.database
            return
        statements = create_statements(question.prompt) or create_statements(question.conversation)
        for number in range(MAX_TRIES if statements else 0):
            yield generated_database(statements, reference.tokens, number)

    def warnings(self) -> list[str]:
        """If no row could be tested by its result: why the first could not."""
        reasons = list(self.untested.values())
        if not reasons or "" in reasons:
            return []
        rows = f"{len(reasons)} references" if len(reasons) > 1 else "the one reference"
        ask = "is it the right table, and is table_name what the queries call it"
        if self.table == PROMPT:
            ask = "does each prompt have its CREATE TABLE"
        table, first = shown_source(self.table or ""), reasons[0]
        return [
            f"eval.format.table {table}: no execution_match, because none of {rows} can be tested "
            f"by its result; the first: {first}; {ask}?"
        ]


def sql_scorer(wanted: SqlFormat) -> SqlScorer:
    """Raises DataError (`answer_table`) for the file of a table."""
    in_file = wanted.table is not None and wanted.table != PROMPT
    database = file_database(str(wanted.table), wanted.table_name) if in_file else None
    return SqlScorer(wanted.dialect, wanted.table, database)


def _execution_fault(query: Query, reference: Query, databases: Databases) -> Finding | None:
    """Why a query does not have the reference's results; None: it has."""
    if query.fault is not None:
        return query.fault
    results = [database.run(query.text) for database, _ in databases]
    fault = next((result.fault for result in results if result.fault is not None), None)
    if fault is not None:
        return Finding("does not run", fault)
    wrong = sum(
        not result.equals(wanted, ordered=reference.is_ordered)
        for result, (_, wanted) in zip(results, databases, strict=True)
    )
    message = f"another result than the reference in {wrong} of {counted(len(results), 'database')}"
    return Finding("other result", message) if wrong else None
