from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcli.metrics.format import format_scorer
from ftcli.metrics.format.made_rows import trials
from ftcli.metrics.format.prompt_tables import affinity, declared_tables
from ftcli.metrics.format.sql_text import read_sql_text
from ftcli.metrics.scorer import ExampleResult, Question
from ftcli.recipe import SqlFormat

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from sql_match_error import measure  # noqa: E402

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


def judged(answer: str, reference: str, prompt: str = SHOP) -> ExampleResult:
    judge = format_scorer(SqlFormat(type="sql", table="prompt"), Path())
    return judge.score(answer, Question(prompt, reference, ""))


def same(answer: str, reference: str, prompt: str = SHOP) -> bool:
    counts = judged(answer, reference, prompt).counts
    assert counts["execution_tested"] == (1, 1)
    return counts["execution_match"] == (1, 1)


def test_tables_are_read_from_the_prompt() -> None:
    found = declared_tables(TWO)
    assert [table.name for table in found.tables] == ["teams", "players"]
    players = found.tables[1]
    assert [(c.name, c.kind, c.may_be_null, c.is_key) for c in players.columns] == [
        ("id", "integer", False, True),
        ("team_id", "integer", True, False),
        ("name", "text", False, False),
        ("goals", "integer", True, False),
    ]
    assert players.refers == (("team_id", "id"),)


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("no table", []),
        ("CREATE TABLE a (b", []),
        ("create table if not exists a (b, c)\nquestion", ["a"]),
        ('CREATE TEMP TABLE "my table" ("a )", b)', ["my table"]),
        ("CREATE TABLE a (b); CREATE TABLE a (c); CREATE TABLE d (e VARCHAR(3))", ["a", "d"]),
        ("CREATE TABLE a (b FOREIGN nonsense (); CREATE TABLE d (e)", ["d"]),
        ("CREATE TABLE a ()", []),
    ],
)
def test_statements_that_sqlite_does_not_take_are_left_out(prompt: str, names: list[str]) -> None:
    assert [table.name for table in declared_tables(prompt).tables] == names


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ("INTEGER", "integer"),
        ("bigint", "integer"),
        ("VARCHAR(20)", "text"),
        ("", ""),
        ("BLOB", ""),
        ("DOUBLE PRECISION", "real"),
        ("DECIMAL(10,2)", "numeric"),
    ],
)
def test_affinity_follows_sqlite(declared: str, kind: str) -> None:
    assert affinity(declared) == kind


REFERENCE = "SELECT name FROM shop WHERE price > 20 AND colour = 'red'"


@pytest.mark.parametrize(
    "answer",
    [
        "select name from shop where colour = 'red' and price > 20",
        "SELECT s.name FROM shop s WHERE 20 < s.price AND s.colour LIKE 'red' AND colour = 'red'",
        "SELECT name FROM (SELECT * FROM shop WHERE price > 20) WHERE colour IN ('red')",
    ],
)
def test_other_words_for_the_same_are_accepted(answer: str) -> None:
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
    turned = "SELECT p.name, t.name FROM teams t, players p WHERE p.goals > 10 AND t.id = p.team_id"
    assert same(turned, reference, TWO)
    assert not same(reference.replace("JOIN", "LEFT JOIN"), reference, TWO)
    assert not same(reference.replace("p.team_id = t.id", "p.id = t.id"), reference, TWO)


@pytest.mark.parametrize(
    ("reference", "prompt", "why"),
    [
        ("SELECT a FROM t", "What is a?", "its prompt holds no CREATE TABLE"),
        ("SELECT a FROM shop", SHOP, "no such column: a"),
        ("SELECT name FROM shop WHERE 1 = 2", SHOP, "finds nothing in any of the databases"),
    ],
)
def test_a_row_without_a_test_is_counted_apart(reference: str, prompt: str, why: str) -> None:
    said = judged(reference, reference, prompt)
    assert said.counts["execution_tested"] == (0, 1)
    assert "execution_match" not in said.counts
    assert why in said.findings[0].message


def test_the_same_reference_gets_the_same_databases() -> None:
    def dumped() -> list[list[str]]:
        made, _ = trials(declared_tables(TWO), read_sql_text(reference, "sqlite"))
        return [list(trial.database.run("SELECT * FROM players").rows) for trial in made]  # type: ignore[arg-type]

    reference = "SELECT name FROM players WHERE goals = 3"
    first = dumped()
    assert len(first) == 6
    assert first == dumped()
    assert all(len(rows) > 10 for rows in first)


@pytest.mark.parametrize("literal", ["99999999999999999999", "1e999", "-5", "'%'", "''", "x'ff'"])
def test_odd_literals_do_no_harm(literal: str) -> None:
    reference = f"SELECT name FROM shop WHERE seen = {literal}"
    counts = judged(reference, reference).counts
    assert counts["execution_tested"][0] == 0 or counts["execution_match"] == (1, 1)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_prompt_is_read(text: str) -> None:
    for prompt in (f"CREATE TABLE {text}", f"CREATE TABLE t ({text});"):
        found = declared_tables(prompt)
        assert found == declared_tables(prompt)


def test_changed_queries_are_told_apart() -> None:
    """What docs/formats.md says of the demo's references, on a part of them."""
    lines = (ROOT / "recipes/data/question-sql.jsonl").read_text("utf-8").splitlines()
    read = [json.loads(line) for line in lines[:16]]
    judge = format_scorer(SqlFormat(type="sql", table="prompt"), Path())
    rows, tested, tally = measure(judge, [(row["prompt"], row["completion"]) for row in read])
    assert tested == rows == 16
    right = [said for (kind, _), found in tally.items() if kind == "right" for said, *_ in found]
    wrong = [said for (kind, _), found in tally.items() if kind == "wrong" for said, *_ in found]
    assert len(right) > 60 and all(right)
    assert len(wrong) > 60
    assert sum(wrong) <= 0.01 * len(wrong)
