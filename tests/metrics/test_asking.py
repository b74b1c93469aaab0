"""What a row asks: which of its turns hold the facts, and which the tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.data.example import Message, Role
from ftcli.metrics.asking import question_of
from ftcli.metrics.faithfulness import faithfulness_scorer
from ftcli.metrics.format import format_scorer
from ftcli.recipe import SqlFormat
from ftcli.recipe.faithfulness import Faithfulness

FACTS = "Product: Torkel Bag\nColours: olive\nPockets: 3"
TABLE = "CREATE TABLE shop (id INTEGER PRIMARY KEY, name TEXT, price REAL);"
REFERENCE = "SELECT name FROM shop WHERE price > 20"


def turns(*pairs: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(*pair) for pair in pairs)


def test_one_user_turn_is_prompt_and_facts() -> None:
    found = question_of(turns(("system", "Sell."), ("user", FACTS), ("assistant", "A bag.")), None)
    assert (found.prompt, found.reference, found.facts) == (FACTS, "A bag.", FACTS)
    assert found.conversation == f"Sell.\n\n{FACTS}"
    assert question_of((), None).facts == ""


def test_facts_of_an_earlier_turn_support_the_last_answer() -> None:
    said = "An olive Torkel bag with three pockets."
    talk = turns(
        ("system", "Red is our colour."),
        ("user", FACTS),
        ("assistant", "A black bag for you."),
        ("user", "Shorter, please."),
        ("assistant", said),
    )
    question = question_of(talk, None)
    assert question.prompt == "Shorter, please."
    assert question.facts == f"{FACTS}\n\nShorter, please."
    judge = faithfulness_scorer(Faithfulness(), Path())
    counts = judge.score(said, question).counts
    assert counts["invents"] == (0, 1) and counts["coverage"] == (3, 3)
    for colour in ("red", "black"):
        found = judge.score(f"A {colour} bag.", question).counts["invents"]
        assert found == (1, 1), "neither the system turn nor an answer gives facts"


def test_the_expression_looks_at_all_user_turns() -> None:
    talk = turns(
        ("user", f"Write.\n{FACTS}"), ("assistant", "A"), ("user", "Shorter."), ("assistant", "B")
    )
    wanted = Faithfulness(facts=r"(?s)(?P<facts>Product:.*?)\n\n")
    assert question_of(talk, wanted).facts == FACTS


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
    judge = format_scorer(SqlFormat(type="sql", table="prompt"), Path())
    counts = judge.score(REFERENCE, question).counts
    assert counts["execution_tested"] == counts["execution_match"] == (1, 1)
    assert judge.score("SELECT name FROM shop", question).counts["execution_match"] == (0, 1)
    assert judge.warnings() == []


def test_the_tables_of_the_last_turn_come_first() -> None:
    """An earlier turn asked about another table of the same name."""
    other = TABLE.replace("price", "cost")
    last = ("user", f"{TABLE}\nWhich?")
    talk = turns(("user", other), ("assistant", "Ask."), last, ("assistant", REFERENCE))
    judge = format_scorer(SqlFormat(type="sql", table="prompt"), Path())
    assert judge.score(REFERENCE, question_of(talk, None)).counts["execution_match"] == (1, 1)
