"""SQL answers: one query, its spelling, and its result in the tables of a file."""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ftcli.config.recipe import SqlFormat
from ftcli.errors import DataError
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import ExampleResult, Question
from ftcli.evaluation.scorers.sql_databases import Result

REFERENCE = "SELECT name FROM shop WHERE price > 2 AND colour = 'red'"
ROWS: list[dict[str, Any]] = [
    {"name": "kettle", "price": 10, "colour": "red"},
    {"name": "lamp", "price": 2, "colour": "red"},
    {"name": "lamp", "price": 2.5, "colour": "red"},
    {"name": "mug", "price": 7, "colour": "blue"},
    {"name": "spade", "price": None, "colour": "blue"},
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.jsonl").write_text("\n".join(map(json.dumps, ROWS)), "utf-8")
    return tmp_path


def scored(answer: str, reference: str = REFERENCE, **form: Any) -> ExampleResult:
    scorer = format_scorer(SqlFormat(type="sql", **form))
    return scorer.score(answer, Question("", reference, ""))


def on_shop(shop: Path, answer: str, reference: str = REFERENCE) -> ExampleResult:
    return scored(answer, reference, table="shop.jsonl", table_name="shop")


@pytest.mark.parametrize(
    "answer",
    [
        "SELECT 1",
        "select a from b;",
        "-- a comment\nSELECT a FROM b",
        "WITH c AS (SELECT 1) SELECT * FROM c",
        "SELECT a FROM b UNION SELECT c FROM d ORDER BY 1",
        # Columns that SQLite accepts and sqlglot does not.
        "SELECT for FROM data WHERE against = '17'",
        'SELECT "order" FROM [my table]',
        "SELECT hex(zeroblob(3)), ';'",
        "SELECT for FROM data; -- the semicolon ends it\n",
        "SELECT for FROM data WHERE a = 'x;y' ;; /* done */",
    ],
)
def test_one_query_is_valid(answer: str) -> None:
    result = scored(answer)
    assert result.counts["sql_valid"] == result.counts["format_rate"] == (1, 1), result.findings


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ("", "not SQL", "empty"),
        ("```sql\nSELECT 1\n```", "not SQL", "in a code fence"),
        ("Sure: SELECT 1", "not SQL", 'near "Sure": syntax error'),
        ("SELECT a FROM", "not SQL", "incomplete input"),
        ("SELECT FROM x", "not SQL", 'near "FROM": syntax error'),
        ("FROM x SELECT a", "not SQL", 'near "FROM": syntax error'),
        ("SELECT 'a", "not SQL", "unrecognized token"),
        ("SELECT 1; SELECT 2", "not a query", "more than one statement"),
        ("SELECT for FROM b; This lists every for of b.", "not a query", "more than one"),
        ("SELECT a FROM b; -- so\nDone", "not a query", "more than one statement"),
        ("hello", "not a query", "COLUMN, expected a SELECT"),
        ("VALUES (1)", "not a query", "VALUES"),
        ("DELETE FROM a", "not a query", "DELETE"),
        ("DROP TABLE a", "not a query", "DROP"),
        ("INSERT INTO a VALUES (1)", "not a query", "INSERT"),
        ("WITH x AS (SELECT 1) DELETE FROM a", "not a query", "DELETE"),
        ("SELECT 1; DELETE FROM a", "not a query", "more than one statement"),
        ("CREATE TABLE a (b)", "not a query", "CREATE"),
        ("ATTACH 'x.db' AS x", "not a query", "ATTACH"),
        ("PRAGMA user_version = 3", "not a query", "PRAGMA"),
        ("VACUUM INTO 'x.db'", "not a query", "COMMAND"),
        ("EXPLAIN SELECT 1", "not a query", "COMMAND"),
        ("QUERY PLAN SELECT 1", "not SQL", ""),
        ("SELECT '\ud800'", "not SQL", "surrogates"),
        ("SELECT \0", "not SQL", "null character"),
        ("SELECT 1 " + "-- " * 10_000, "not SQL", "more than 20,000 characters"),
    ],
)
def test_anything_else_is_not_valid(answer: str, kind: str, message: str) -> None:
    result = scored(answer)
    assert result.counts["sql_valid"] == result.counts["format_rate"] == (0, 1)
    assert result.counts["sql_match"] == (0, 1)
    assert result.findings[0].kind == kind
    assert message in result.findings[0].message


def test_the_parser_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scored("EXPLAIN SELECT 1", "VACUUM")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("select NAME from Shop where price > 2 and colour = 'red';", True),
        ("SELECT \"name\" FROM [shop]\n  WHERE `price` > 2 AND colour == 'red' -- so", True),
        ("SELECT name FROM shop WHERE colour = 'red' AND price > 2", False),
        ("SELECT name FROM shop WHERE price > 2 AND colour = 'RED'", False),
        ("SELECT name FROM shop WHERE price > 3 AND colour = 'red'", False),
        ("SELECT price FROM shop WHERE price > 2 AND colour = 'red'", False),
    ],
)
def test_spelling_of_keywords_and_names_does_not_matter(answer: str, same: bool) -> None:
    assert scored(answer).counts["sql_match"] == (same, 1)


def test_what_only_sqlite_parses_is_compared_as_text() -> None:
    reference = "SELECT for FROM data WHERE against = 'A  b'"
    assert scored("select  FOR from data where against = 'A  b';", reference).counts[
        "sql_match"
    ] == (1, 1)
    other = scored("SELECT for FROM data WHERE against = 'a b'", reference)
    assert other.counts["sql_match"] == (0, 1)


def test_dialects_differ() -> None:
    answer = "SELECT TOP 3 a FROM b"
    assert scored(answer, answer, dialect="tsql").counts["sql_match"] == (1, 1)
    assert scored(answer, answer).counts["sql_valid"] == (0, 1)


def test_a_reference_that_is_not_a_query_does_not_count(shop: Path) -> None:
    result = on_shop(shop, "SELECT 1", "no query")
    assert result.counts == {
        "format_rate": (1, 1),
        "sql_valid": (1, 1),
        "execution_tested": (0, 1),
    }
    assert [finding.kind for finding in result.findings] == ["reference"]


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        (REFERENCE, True),
        ("SELECT s.name FROM shop AS s WHERE colour IN ('red') AND NOT s.price <= 2", True),
        ("SELECT name FROM shop WHERE price > 2 AND colour = 'red' ORDER BY name DESC", True),
        ("SELECT name FROM shop WHERE price >= 2 AND colour = 'red'", False),
        ("SELECT name FROM shop WHERE colour = 'red'", False),
        ("SELECT name, price FROM shop WHERE price > 2 AND colour = 'red'", False),
        ("SELECT count(*) FROM shop", False),
    ],
)
def test_results_on_a_named_table_are_compared(shop: Path, answer: str, same: bool) -> None:
    result = on_shop(shop, answer)
    assert result.counts["execution_match"] == (same, 1)
    assert result.counts["sql_runs"] == result.counts["execution_tested"] == (1, 1)
    assert [f.kind for f in result.findings] == ([] if same else ["other result"])


def test_order_counts_if_the_reference_has_one(shop: Path) -> None:
    ordered = "SELECT name FROM shop WHERE price IS NOT NULL ORDER BY price"
    assert on_shop(shop, ordered, ordered).counts["execution_match"] == (1, 1)
    reverse = f"{ordered} DESC"
    assert on_shop(shop, reverse, ordered).counts["execution_match"] == (0, 1)
    assert on_shop(shop, reverse, ordered.partition(" ORDER")[0]).counts["execution_match"] == (
        1,
        1,
    )


def test_duplicate_rows_count(shop: Path) -> None:
    reference = "SELECT name FROM shop WHERE colour = 'red'"
    result = on_shop(shop, "SELECT DISTINCT name FROM shop WHERE colour = 'red'", reference)
    assert result.counts["execution_match"] == (0, 1)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("SELECT name FROM shop WHERE price > 1000", "finds nothing in the tables"),
        ("SELECT max(price) FROM shop WHERE price > 1000", "finds nothing in the tables"),
        ("SELECT nme FROM shop", "does not run: no such column: nme"),
        ("SELECT name FROM shops", "does not run: no such table: shops"),
    ],
)
def test_a_reference_that_finds_nothing_is_not_counted(
    shop: Path, reference: str, why: str
) -> None:
    result = on_shop(shop, reference, reference)
    assert result.counts["execution_tested"] == (0, 1)
    assert not {"sql_runs", "execution_match"} & set(result.counts)
    assert why in result.findings[0].message


def test_an_answer_that_does_not_run_says_why(shop: Path) -> None:
    result = on_shop(shop, "SELECT nme FROM shop")
    assert result.counts["sql_valid"] == (1, 1)
    assert result.counts["sql_runs"] == result.counts["execution_match"] == (0, 1)
    assert result.findings[0].message == "no such column: nme"


def test_a_table_in_several_kinds_of_file(shop: Path) -> None:
    header = "name,price,colour\n"
    lines = [f"{r['name']},{'' if r['price'] is None else r['price']},{r['colour']}" for r in ROWS]
    (shop / "shop.csv").write_text(header + "\n".join(lines), "utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), shop / "shop.parquet")
    with sqlite3.connect(shop / "shop.db") as database:
        database.execute("CREATE TABLE shop (name TEXT, price REAL, colour TEXT)")
        database.executemany("INSERT INTO shop VALUES (:name, :price, :colour)", ROWS)
    database.close()
    for name in ("shop.jsonl", "shop.csv", "shop.parquet", "shop.db"):
        wanted = SqlFormat(type="sql", table=name, table_name="shop")
        scorer = format_scorer(wanted)
        for query, matches in (
            (REFERENCE, True),
            ("SELECT name FROM shop WHERE colour = 'red' AND price > 2.5", False),
        ):
            result = scorer.score(query, Question("", REFERENCE, ""))
            assert result.counts["execution_match"] == (matches, 1), name
        empty = scorer.score(REFERENCE, Question("", "SELECT sum(price) FROM shop", ""))
        assert empty.counts["execution_match"] == (0, 1)
        total = scorer.score("SELECT 21.5", Question("", "SELECT sum(price) FROM shop", ""))
        assert total.counts["execution_match"] == (1, 1), name


def test_a_database_with_a_write_ahead_log_is_refused(tmp_path: Path) -> None:
    """Its newest rows are in the log."""
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (a)")
        with pytest.raises(DataError, match="close the program that has it open"):
            format_scorer(SqlFormat(type="sql", table="a.db"))


def test_codes_of_a_csv_stay_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("code,size\n007,1\n010,2\n", "utf-8")
    reference = "SELECT code FROM data WHERE code = '007' AND size = 1"
    result = scored(reference, reference, table="a.csv")
    assert result.counts["execution_tested"] == (1, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "cannot be read: No such file or directory"),
        ("a.xml", b"<a/>", "neither csv, tsv, jsonl, json nor parquet, and not an SQLite file"),
        ("a.jsonl", b"", "has no row"),
        ("a.jsonl", b'{"a": 1}\n{"a"}\n', "unreadable row"),
        ("a.jsonl", b'{"a": 1, "A": 2}\n', "SQLite cannot read it: duplicate column"),
        ("a.db", b"SQLite format 3\x00" + b"x" * 200, "SQLite cannot read it: "),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        format_scorer(SqlFormat(type="sql", table=name))
    assert caught.value.exit_code == 1
    assert (caught.value.file or "").endswith(name)
    assert message in caught.value.message


def test_a_database_file_is_neither_changed_nor_locked(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (1)")
    database.close()
    before = file.read_bytes()
    scorer = format_scorer(SqlFormat(type="sql", table="a.db"))
    for answer in ("DELETE FROM t", "SELECT a FROM t", "DROP TABLE t", "UPDATE t SET a = 2"):
        scorer.score(answer, Question("", "SELECT a FROM t", ""))
    still = scorer.score("SELECT a FROM t", Question("", "SELECT a FROM t", ""))
    assert still.counts["execution_match"] == (1, 1)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def test_numbers_are_equal_to_9_digits() -> None:
    assert Result(((0.1 + 0.2, "a"),)).equals(Result(((0.3, "a"),)), ordered=True)
    assert Result(((1,),)).equals(Result(((1.0,),)), ordered=True)
    assert not Result(((1,),)).equals(Result((("1",),)), ordered=False)
    assert not Result(fault="x").equals(Result(fault="x"), ordered=False)


def test_a_warning_if_no_reference_finds_anything(shop: Path) -> None:
    scorer = format_scorer(SqlFormat(type="sql", table="shop.jsonl", table_name="shop"))
    assert scorer.warnings() == [], "nothing has been scored"
    for price in range(3):
        wrong = f"SELECT title FROM books WHERE price > {price}"
        for _side in ("base", "tuned"):
            scorer.score(REFERENCE, Question("", wrong, ""))
    [warning] = scorer.warnings()
    assert warning.startswith(
        "eval.format.table shop.jsonl: no execution_match, because none of 3 references can be "
        "tested by its result; the first: the reference does not run: no such table: books"
    )
    assert warning.endswith("is it the right table, and is table_name what the queries call it?")
    scorer.score(REFERENCE, Question("", REFERENCE, ""))
    assert scorer.warnings() == []


def test_a_warning_if_prompts_have_no_tables() -> None:
    scorer = format_scorer(SqlFormat(type="sql", table="prompt"))
    scorer.score(REFERENCE, Question("Which are red?", REFERENCE, ""))
    [warning] = scorer.warnings()
    assert "the one reference" in warning and "its prompt has no CREATE TABLE" in warning
    plain = format_scorer(SqlFormat(type="sql"))
    plain.score(REFERENCE, Question("", REFERENCE, ""))
    assert plain.warnings() == []
