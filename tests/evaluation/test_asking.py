"""Tables for a query may stand in any turn of a conversation."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.config.recipe import SqlFormat
from ftcli.data.example import Message, Role
from ftcli.evaluation.scorers.asking import question_of
from ftcli.evaluation.scorers.format import format_scorer

TABLE = "CREATE TABLE shop (id INTEGER PRIMARY KEY, name TEXT, price REAL);"
REFERENCE = "SELECT name FROM shop WHERE price > 20"


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
    question = question_of(turns(*before, ("assistant", REFERENCE)), None)
    scorer = format_scorer(SqlFormat(type="sql", table="prompt"), Path())
    counts = scorer.score(REFERENCE, question).counts
    assert counts["execution_tested"] == counts["execution_match"] == (1, 1)
    assert scorer.score("SELECT name FROM shop", question).counts["execution_match"] == (0, 1)
    assert scorer.warnings() == []


def test_the_tables_of_the_last_turn_come_first() -> None:
    """An earlier turn asked about another table of the same name."""
    other = TABLE.replace("price", "cost")
    last = ("user", f"{TABLE}\nWhich?")
    talk = turns(("user", other), ("assistant", "Ask."), last, ("assistant", REFERENCE))
    scorer = format_scorer(SqlFormat(type="sql", table="prompt"), Path())
    assert scorer.score(REFERENCE, question_of(talk, None)).counts["execution_match"] == (1, 1)
