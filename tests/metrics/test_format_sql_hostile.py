"""Answers that an untrained model, or an unfriendly one, may give where SQL is asked for."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcli.metrics.format import format_scorer
from ftcli.metrics.format.sandbox import LONGEST_VALUE, MOST_QUERY_BYTES, Sandbox
from ftcli.metrics.scorer import Question
from ftcli.recipe import SqlFormat

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
    "loads": "SELECT load_extension('x')",
    "attaches": "ATTACH DATABASE 'evil.db' AS e",
    "vacuums": "VACUUM INTO 'evil.db'",
    "writes": "DELETE FROM t",
    "sets": "PRAGMA writable_schema = 1",
    "looks up": "SELECT * FROM pragma_database_list",
    "random": "SELECT random() FROM t",
    "binds": "SELECT ?1, :a FROM t",
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_hostile_queries_end_and_do_nothing(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(json.dumps({"a": number}) for number in range(100))
    (tmp_path / "t.jsonl").write_text(rows, "utf-8")
    judge = format_scorer(SqlFormat(type="sql", table="t.jsonl", table_name="t"), tmp_path)
    question = Question("", "SELECT a FROM t", "")
    assert judge.score(answer, question).counts["execution_match"] == (0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
    # And the table is what it was.
    assert judge.score("SELECT a FROM t", question).counts["execution_match"] == (1, 1)


def test_a_query_gets_the_same_end_each_time() -> None:
    sandbox = Sandbox().close(steps=20_000)
    counting = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x LIMIT {}) "
    counting += "SELECT count(*) FROM x"
    assert sandbox.run(counting.format(100)).rows == ((100,),)
    for _ in range(3):
        assert sandbox.run(counting.format(100_000)).fault == "takes too many steps"
        assert sandbox.run("SELECT 1").rows == ((1,),)


COUNTED = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x LIMIT {rows}) "
GREEDY = {
    "sorts": COUNTED + "SELECT printf('%{width}d', n) AS p FROM x ORDER BY p",
    "keeps": COUNTED + "SELECT count(*) FROM (SELECT DISTINCT printf('%{width}d', n) FROM x)",
}


@pytest.mark.parametrize("query", GREEDY.values(), ids=GREEDY)
@pytest.mark.parametrize("longest", [0, 50_000], ids=["short values", "long values"])
def test_a_query_takes_no_more_than_its_memory(query: str, longest: int) -> None:
    """600 MB of values, within its steps."""
    sandbox = Sandbox().close(longest)
    width = max(LONGEST_VALUE, 2 * longest) - 100
    before = peak_bytes()
    asked = query.format(width=width, rows=600_000_000 // width)
    assert sandbox.run(asked).fault == "takes too much memory"
    assert peak_bytes() - before < 1.3 * MOST_QUERY_BYTES
    assert sandbox.run("SELECT 1").rows == ((1,),)


def test_what_takes_too_much_memory_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"a": "b" * 50_000}), "utf-8")
    judge = format_scorer(SqlFormat(type="sql", table="t.jsonl", table_name="t"), tmp_path)
    question = Question("", "SELECT a FROM t", "")
    answer = GREEDY["keeps"].format(width=99_900, rows=6000)
    said = judge.score(answer, question)
    assert said.counts["execution_match"] == said.counts["sql_runs"] == (0, 1)
    assert [(f.kind, f.message) for f in said.findings] == [
        ("does not run", "takes too much memory")
    ]
    assert judge.score("SELECT a FROM t", question).counts["execution_match"] == (1, 1)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


WORDS = ["SELECT", "FROM", "WHERE", "(", ")", ",", "*", "a", "t", "1", "'x'", "'", '"', ";", "--"]
WORDS += ["WITH", "AS", "UNION", "CASE", "NOT", "{", "[", "%", "\0", "\ud800", "/*", "PRAGMA", "="]
PIECES = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.text() | PIECES, st.text() | PIECES)
def test_any_answer_gets_a_judgement(answer: str, reference: str) -> None:
    prompt = "CREATE TABLE t (a INTEGER, b TEXT, c);"
    judge = format_scorer(SqlFormat(type="sql", table="prompt"), Path())
    for wanted in (reference, "SELECT a FROM t WHERE b = 'x'"):
        said = judge.score(answer, Question(prompt, wanted, ""))
        assert set(said.counts) <= set(judge.kinds)
        for top, bottom in said.counts.values():
            assert 0 <= top <= bottom
        for finding in said.findings:
            if finding.start is not None and finding.end is not None:
                assert 0 <= finding.start < finding.end <= len(answer)


@settings(max_examples=100, deadline=None)
@given(PIECES, st.sampled_from(["postgres", "mysql", "bigquery", "tsql", "snowflake"]))
def test_any_dialect_judges_any_answer(answer: str, dialect: str) -> None:
    judge = format_scorer(SqlFormat.model_validate({"type": "sql", "dialect": dialect}), Path())
    said = judge.score(answer, Question("", "SELECT 1", ""))
    assert said.counts["sql_valid"] == said.counts["format_rate"]
