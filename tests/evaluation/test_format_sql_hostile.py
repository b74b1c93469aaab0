"""Hostile SQL answers."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcli.config.recipe import SqlFormat
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import Question
from ftcli.evaluation.scorers.sql_databases import MAX_BYTES, Database, in_memory

HOSTILE = {
    "counts for ever": "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) "
    "SELECT count(*) FROM x",
    "rows for ever": "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) "
    "SELECT * FROM x",
    "texts for ever": "WITH RECURSIVE x(n) AS (SELECT 'a' UNION ALL SELECT n || n FROM x) "
    "SELECT * FROM x",
    "joins": "SELECT count(*) FROM " + ", ".join(f"t AS t{i}" for i in range(30)),
    "blob": "SELECT zeroblob(1000000000)",
    "format": "SELECT length(printf('%1000000000d', 1))",
    "like": f"SELECT replace('{'a' * 900}', 'a', 'aa') LIKE '{'%a' * 200}b' FROM t",
    "aggregate": "SELECT group_concat(a.a || b.a) FROM t a, t b, t c, t d, t e, t f",
    "depth": "SELECT " + "(" * 900 + "1" + ")" * 900,
    "open": "(" * 15_000,
    "brackets": "[" * 1_000_000,
    "instr": "SELECT sum(instr(printf('%1000000d', a), printf('%500000d', a) || 'x')) FROM t",
    "loads": "SELECT load_extension('x')",
    "attaches": "ATTACH DATABASE 'evil.db' AS e",
    "vacuums": "VACUUM INTO 'evil.db'",
    "writes": "DELETE FROM t",
    "sets": "PRAGMA writable_schema = 1",
    "looks up": "SELECT * FROM pragma_database_list",
    "random": "SELECT random() FROM t",
    "binds": "SELECT ?1, :a FROM t",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_hostile_queries_end_and_change_nothing(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(json.dumps({"a": number}) for number in range(100))
    (tmp_path / "t.jsonl").write_text(rows, "utf-8")
    scorer = format_scorer(SqlFormat(type="sql", table="t.jsonl", table_name="t"))
    question = Question("", "SELECT a FROM t", "")
    assert scorer.score(answer, question).counts["execution_match"] == (0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
    # The table is unchanged.
    assert scorer.score("SELECT a FROM t", question).counts["execution_match"] == (1, 1)


def test_a_query_ends_the_same_way_each_time() -> None:
    database = Database(in_memory(), 20_000)
    counting = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x LIMIT {}) "
    counting += "SELECT count(*) FROM x"
    assert database.run(counting.format(100)).rows == ((100,),)
    for _ in range(3):
        assert database.run(counting.format(100_000)).fault == "takes too many steps"
        assert database.run("SELECT 1").rows == ((1,),)


def test_a_query_takes_no_more_than_its_memory() -> None:
    """3 GB of values; memory stays bounded, whichever limit comes first."""
    database = Database(in_memory(), 5_000_000, longest=500_000)
    counted = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x LIMIT 3500) "
    greedy = "SELECT count(*) FROM (SELECT DISTINCT printf('%900000d', n) FROM x)"
    before = peak_bytes()
    faults = ("takes too much memory", "takes too many steps")
    assert database.run(counted + greedy).fault in faults
    assert peak_bytes() - before < 1.3 * MAX_BYTES
    assert database.run("SELECT 1").rows == ((1,),)


def peak_bytes() -> int:
    """Peak memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


WORDS = ["SELECT", "FROM", "WHERE", "(", ")", ",", "*", "a", "t", "1", "'x'", "'", '"', ";", "--"]
WORDS += ["WITH", "AS", "UNION", "CASE", "NOT", "{", "[", "%", "\0", "\ud800", "/*", "PRAGMA", "="]
PIECES = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)


@settings(max_examples=120, deadline=None)
@given(st.text() | PIECES, st.text() | PIECES)
def test_any_answer_gets_counts(answer: str, reference: str) -> None:
    prompt = "CREATE TABLE t (a INTEGER, b TEXT, c);"
    scorer = format_scorer(SqlFormat(type="sql", table="prompt"))
    for wanted in (reference, "SELECT a FROM t WHERE b = 'x'"):
        result = scorer.score(answer, Question(prompt, wanted, ""))
        assert set(result.counts) <= set(scorer.kinds)
        for numerator, denominator in result.counts.values():
            assert 0 <= numerator <= denominator


@settings(max_examples=60, deadline=None)
@given(PIECES, st.sampled_from(["postgres", "mysql", "bigquery", "tsql", "snowflake"]))
def test_any_dialect_scores_any_answer(answer: str, dialect: str) -> None:
    scorer = format_scorer(SqlFormat.model_validate({"type": "sql", "dialect": dialect}))
    result = scorer.score(answer, Question("", "SELECT 1", ""))
    assert result.counts["sql_valid"] == result.counts["format_rate"]
