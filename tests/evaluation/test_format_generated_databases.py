"""Queries scored in databases that are made from the CREATE TABLE of their prompt."""

from __future__ import annotations

import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcli.config.recipe import SqlFormat
from ftcli.data.example import Message, Role
from ftcli.evaluation.scorers.facts import question_of
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import ExampleResult, Question
from ftcli.evaluation.scorers.sql_databases import create_statements, generated_database, has_tables

SHOP = "CREATE TABLE shop (id INTEGER PRIMARY KEY, name TEXT, price REAL, colour TEXT, seen);"
TWO = """Answer with SQL.
CREATE TABLE teams (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE players (
    id INTEGER PRIMARY KEY, -- not ) the team's
    team_id INTEGER REFERENCES teams(id),
    name TEXT NOT NULL,
    goals INTEGER CHECK (goals >= 0)
);
Question: who?"""


def scored(answer: str, reference: str, prompt: str = SHOP) -> ExampleResult:
    scorer = format_scorer(SqlFormat(type="sql", table="prompt"))
    return scorer.score(answer, Question(prompt, reference, ""))


def same(answer: str, reference: str, prompt: str = SHOP) -> bool:
    counts = scored(answer, reference, prompt).counts
    assert counts["execution_tested"] == (1, 1)
    return counts["execution_match"] == (1, 1)


@pytest.mark.parametrize(
    ("prompt", "statements"),
    [
        ("no table", []),
        ("CREATE TABLE a (b", []),
        ("CREATE TABLE a ()", []),
        (
            "CREATE TABLE a AS SELECT * FROM (WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL "
            "SELECT n + 1 FROM x) SELECT count(*) FROM x)",
            [],
        ),
        ("CREATE TABLE `a`(b) AS SELECT 1", ["TABLE `a`(b)"]),
        ("create table if not exists a (b, c)\nquestion (so)", ["TABLE if not exists a (b, c)"]),
        ('CREATE TEMP TABLE "my table" ("a )", b)', ['TABLE "my table" ("a )", b)']),
        (
            "CREATE TABLE a (b); CREATE TABLE a (c); CREATE TABLE d (e VARCHAR(3))",
            ["TABLE a (b)", "TABLE d (e VARCHAR(3))"],
        ),
        ("CREATE TABLE a (b FOREIGN nonsense (); CREATE TABLE d (e)", ["TABLE d (e)"]),
    ],
)
def test_statements_that_sqlite_accepts_are_found(prompt: str, statements: list[str]) -> None:
    found = [statement.removeprefix("CREATE ") for statement in create_statements(prompt)]
    assert [each.replace("table if", "TABLE if") for each in found] == statements
    assert has_tables(prompt) is bool(statements)


def test_comments_and_constraints_belong_to_a_statement() -> None:
    teams, players = create_statements(TWO)
    assert teams.endswith("name TEXT)") and players.endswith("CHECK (goals >= 0)\n)")


REFERENCE = "SELECT name FROM shop WHERE price > 20 AND colour = 'red'"


@pytest.mark.parametrize(
    "answer",
    [
        "select name from shop where colour = 'red' and price > 20",
        "SELECT s.name FROM shop s WHERE 20 < s.price AND s.colour LIKE 'red' AND colour = 'red'",
        "SELECT name FROM (SELECT * FROM shop WHERE price > 20) WHERE colour IN ('red')",
    ],
)
def test_equivalent_queries_are_accepted(answer: str) -> None:
    assert same(answer, REFERENCE)


@pytest.mark.parametrize(
    "answer",
    [
        "SELECT colour FROM shop WHERE price > 20 AND colour = 'red'",
        "SELECT name FROM shop WHERE price >= 20 AND colour = 'red'",
        "SELECT name FROM shop WHERE price > 21 AND colour = 'red'",
        "SELECT name FROM shop WHERE price > 20 AND colour = 'Red'",
        "SELECT name FROM shop WHERE price > 20 AND colour LIKE 'red'",
        "SELECT name FROM shop WHERE price > 20 AND colour LIKE 'red%'",
        "SELECT name FROM shop WHERE price > 20 AND name = 'red'",
        "SELECT name FROM shop WHERE price > 20 OR colour = 'red'",
        "SELECT name FROM shop WHERE colour = 'red'",
        "SELECT DISTINCT name FROM shop WHERE price > 20 AND colour = 'red'",
        "SELECT count(name) FROM shop WHERE price > 20 AND colour = 'red'",
        "SELECT name FROM shop",
        "SELECT name FROM shop WHERE 0",
    ],
)
def test_near_misses_are_caught(answer: str) -> None:
    assert not same(answer, REFERENCE)


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [
        (
            "SELECT colour, sum(price) FROM shop WHERE seen = 2023 GROUP BY colour",
            "SELECT colour, avg(price) FROM shop WHERE seen = 2023 GROUP BY colour",
        ),
        (
            "SELECT count(*) FROM shop WHERE price > 5",
            "SELECT count(seen) FROM shop WHERE price > 5",
        ),
        ("SELECT count(*) FROM shop", "SELECT count(DISTINCT name) FROM shop"),
        ("SELECT max(price) FROM shop", "SELECT price FROM shop ORDER BY price LIMIT 1"),
        ("SELECT sum(seen) FROM shop", "SELECT total(price) FROM shop"),
        (
            "SELECT colour FROM shop GROUP BY colour HAVING count(*) > 5",
            "SELECT colour FROM shop GROUP BY colour HAVING count(*) >= 5",
        ),
        (
            "SELECT name FROM shop WHERE seen BETWEEN 3 AND 8",
            "SELECT name FROM shop WHERE seen > 3 AND seen < 8",
        ),
        (
            "SELECT name FROM shop ORDER BY price",
            "SELECT name FROM shop",
        ),
        (
            "SELECT name FROM shop WHERE seen LIKE '2025-%'",
            "SELECT name FROM shop WHERE seen LIKE '%2025%'",
        ),
        ("SELECT name FROM shop WHERE seen = 5", "SELECT name FROM shop WHERE seen = '5'"),
    ],
)
def test_other_questions_are_caught(reference: str, wrong: str) -> None:
    assert same(reference, reference)
    assert not same(wrong, reference)


def test_joins_find_rows() -> None:
    reference = (
        "SELECT p.name, t.name FROM players p JOIN teams t ON p.team_id = t.id WHERE p.goals > 10"
    )
    swapped = (
        "SELECT p.name, t.name FROM teams t, players p WHERE p.goals > 10 AND t.id = p.team_id"
    )
    assert same(swapped, reference, TWO)
    assert not same(reference.replace("JOIN", "LEFT JOIN"), reference, TWO)
    assert not same(reference.replace("p.team_id = t.id", "p.id = t.id"), reference, TWO)


def test_columns_that_only_sqlite_can_parse() -> None:
    table = "CREATE TABLE data (for, against, venue)"
    reference = "SELECT for FROM data WHERE against = '17' AND venue = 'Home'"
    right = "SELECT for FROM (SELECT * FROM data WHERE venue IN ('Home')) WHERE '17' = against"
    assert same(right, reference, table)
    assert not same(reference.replace("AND", "OR"), reference, table)


@pytest.mark.parametrize(
    ("reference", "prompt", "why"),
    [
        ("SELECT a FROM t", "What is a?", "its prompt has no CREATE TABLE"),
        ("SELECT a FROM shop", SHOP, "no such column: a"),
        ("SELECT name FROM shop WHERE 1 = 2", SHOP, "finds nothing in the tables"),
    ],
)
def test_a_row_that_cannot_be_tested_is_not_counted(reference: str, prompt: str, why: str) -> None:
    result = scored(reference, reference, prompt)
    assert result.counts["execution_tested"] == (0, 1)
    assert "execution_match" not in result.counts
    assert why in result.findings[0].message


def test_the_same_reference_gets_the_same_databases() -> None:
    reference = sqlglot.tokenize("SELECT name FROM players WHERE goals > 3", read="sqlite")

    def rows(number: int) -> object:
        database = generated_database(create_statements(TWO), reference, number)
        return database.run("SELECT * FROM players").rows

    assert rows(0) == rows(0) != rows(1)
    assert len(rows(0)) > 20  # type: ignore[arg-type]


@pytest.mark.parametrize("literal", ["99999999999999999999", "1e999", "-5", "'%'", "''", "x'ff'"])
def test_odd_literals(literal: str) -> None:
    reference = f"SELECT name FROM shop WHERE seen = {literal}"
    counts = scored(reference, reference).counts
    assert counts["execution_tested"][0] == 0 or counts["execution_match"] == (1, 1)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_prompt_is_read(text: str) -> None:
    for prompt in (f"CREATE TABLE {text}", f"CREATE TABLE t ({text});"):
        assert create_statements(prompt) == create_statements(prompt)


def test_counts_of_groups_are_distinguished_up_to_twenty() -> None:
    query = "SELECT colour FROM shop GROUP BY colour HAVING count(*) {} {}"
    missed = []
    for count in range(2, 21, 3):
        for right, wrong in ((">", ">="), (">=", ">"), ("=", ">="), ("<", "<=")):
            reference = query.format(right, count)
            assert same(reference, reference)
            if same(query.format(wrong, count), reference):
                missed.append((right, count))
    assert len(missed) <= 1, missed


TABLE = "CREATE TABLE shop (id INTEGER PRIMARY KEY, name TEXT, price REAL);"
DEAR = "SELECT name FROM shop WHERE price > 20"


def turns(*pairs: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "before",
    [
        [("user", f"{TABLE}\nWhich?")],
        [("system", TABLE), ("user", "Which?")],
        [("user", TABLE), ("assistant", "Ask."), ("user", "Which?")],
    ],
)
def test_tables_of_any_turn(before: list[tuple[Role, str]]) -> None:
    question = question_of(turns(*before, ("assistant", DEAR)), None)
    scorer = format_scorer(SqlFormat(type="sql", table="prompt"))
    counts = scorer.score(DEAR, question).counts
    assert counts["execution_tested"] == counts["execution_match"] == (1, 1)
    assert scorer.score("SELECT name FROM shop", question).counts["execution_match"] == (0, 1)
    assert scorer.warnings() == []


def test_the_tables_of_the_last_turn_come_first() -> None:
    """An earlier turn asked about another table of the same name."""
    other = TABLE.replace("price", "cost")
    last = ("user", f"{TABLE}\nWhich?")
    talk = turns(("user", other), ("assistant", "Ask."), last, ("assistant", DEAR))
    scorer = format_scorer(SqlFormat(type="sql", table="prompt"))
    assert scorer.score(DEAR, question_of(talk, None)).counts["execution_match"] == (1, 1)
