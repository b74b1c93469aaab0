"""Prompts of files in the training's formats, with and without answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ftcli.config.recipe import Data
from ftcli.data.example import Message, RejectedRow, Row
from ftcli.data.prompts import (
    choose_examples,
    few_shot,
    read_prompt_rows,
    to_prompts,
    without_system,
)


def prompts(tmp_path: Path, name: str, text: str, **keys: Any) -> list[list[tuple[str, str]]]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [row for row in read_prompt_rows(name) if isinstance(row, Row)]
    found = to_prompts(rows, Data(train="train.jsonl", **keys), name)
    return [
        [(m.role, m.content) for m in item] for item in found if not isinstance(item, RejectedRow)
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a mug"},
        {"prompt": "a mug", "completion": "an answer that is there already"},
        {"question": "a mug"},
        {"instruction": "a mug"},
        {"messages": [{"role": "user", "content": "a mug"}]},
        {"messages": [{"role": "user", "content": "a mug"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a mug"}]},
    ],
)
def test_the_question_is_read_with_or_without_its_answer(
    row: dict[str, Any], tmp_path: Path
) -> None:
    assert prompts(tmp_path, "p.jsonl", json.dumps(row)) == [[("user", "a mug")]]


def test_a_text_file_holds_one_prompt_a_line(tmp_path: Path) -> None:
    found = prompts(tmp_path, "p.txt", "a mug\n\na lamp\n", system="Be brief.")
    system = ("system", "Be brief.")
    assert found == [[system, ("user", "a mug")], [system, ("user", "a lamp")]]


def test_columns_are_filled_as_in_training(tmp_path: Path) -> None:
    keys = {"format": "columns", "prompt": "Product: {name}", "completion": "listing"}
    found = prompts(tmp_path, "p.csv", "name,price\nmug,3\n", **keys)
    assert found == [[("user", "Product: mug")]]


SYSTEM = Message("system", "Write the listing.")


def pair(number: int) -> tuple[Message, ...]:
    return (Message("user", f"kettle {number}"), Message("assistant", f"# Kettle {number}"))


def roles(messages: list[Message]) -> str:
    return "".join(message.role[0] for message in messages)


def test_examples_are_turns_before_the_question() -> None:
    found = few_shot([Message("user", "lamp")], "Be brief.", [pair(1), pair(2)])
    assert found == [Message("system", "Be brief."), *pair(1), *pair(2), Message("user", "lamp")]


def test_whole_conversations_are_shown_and_asked() -> None:
    talk = (*pair(1), Message("user", "shorter"), Message("assistant", "Kettle"))
    found = few_shot([*pair(3), Message("user", "longer")], None, [talk])
    assert found == [*talk, *pair(3), Message("user", "longer")]


@pytest.mark.parametrize(
    ("instruction", "system", "expected"),
    [
        (None, None, None),
        ("Be brief.", None, "Be brief."),
        (None, "Write the listing.", "Write the listing."),
        ("Be brief.", "Write the listing.", "Be brief.\n\nWrite the listing."),
        ("Write the listing.\n", "Write the listing.", "Write the listing."),
        (None, "", ""),
        ("Be brief.", "", "Be brief."),
    ],
)
def test_the_instruction_comes_before_the_rows_own_system_prompt(
    instruction: str | None, system: str | None, expected: str | None
) -> None:
    own = [] if system is None else [Message("system", system)]
    found = few_shot([*own, Message("user", "lamp")], instruction, [])
    assert found[-1] == Message("user", "lamp")
    assert found[:-1] == ([] if expected is None else [Message("system", expected)])


def test_the_systems_of_examples_are_said_once_where_they_are_the_rows_own() -> None:
    asked = [SYSTEM, Message("user", "lamp")]
    other = (Message("system", "Write in French."), *pair(2))
    found = few_shot(asked, None, [(SYSTEM, *pair(1)), other])
    assert roles(found) == "suauau"
    assert found[1:3] == list(pair(1))
    assert found[3] == Message("user", "Write in French.\n\nkettle 2")


def test_an_example_that_holds_the_answer_is_left_out() -> None:
    asked = [SYSTEM, Message("user", "kettle 1")]
    assert roles(few_shot(asked, None, [(SYSTEM, *pair(1)), (SYSTEM, *pair(2))])) == "suau"
    assert roles(few_shot(asked[1:], None, [pair(1)])) == "u"
    # Another system prompt asks another thing.
    french = (Message("system", "Write in French."), *pair(1))
    assert roles(few_shot(asked, None, [french])) == "suau"


def test_templates_without_a_system_turn_get_the_same_words() -> None:
    found = few_shot([Message("user", "lamp")], "Be brief.", [pair(1)])
    folded = without_system(found)
    assert roles(folded) == "uau"
    assert folded[0] == Message("user", "Be brief.\n\nkettle 1")
    assert without_system(folded) == folded
    assert without_system([Message("system", ""), Message("user", "a")]) == [Message("user", "a")]


def test_the_same_rows_in_another_order_give_the_same_examples() -> None:
    rows = [pair(number) for number in range(500)]
    found = choose_examples(iter(rows), 5, seed=42)
    shuffled = [*rows, *rows]
    random.Random(0).shuffle(shuffled)
    assert choose_examples(shuffled, 5, seed=42) == found
    assert len({turns[0].content for turns in found}) == 5
    assert choose_examples(rows, 5, seed=43) != found
    assert choose_examples(rows, 3, seed=42) == found[:3]


def test_there_may_be_fewer_rows_than_wanted() -> None:
    assert len(choose_examples([pair(1), pair(1), pair(2)], 5, seed=0)) == 2
    assert choose_examples([], 5, seed=0) == []
    assert choose_examples([pair(1), ()], 5, seed=0) == [pair(1)]
    assert choose_examples([pair(1)], 0, seed=0) == []
