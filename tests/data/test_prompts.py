"""Prompts of files in the training's formats, with and without answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcli.config.recipe import Data
from ftcli.data.prompts import read_prompt_rows, to_prompts
from ftcli.data.row import Reject, Row


def prompts(tmp_path: Path, name: str, text: str, **keys: Any) -> list[list[tuple[str, str]]]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [row for row in read_prompt_rows(name, tmp_path) if isinstance(row, Row)]
    found = to_prompts(rows, Data(train="train.jsonl", **keys), name)
    return [[(m.role, m.content) for m in item] for item in found if not isinstance(item, Reject)]


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
