"""What `ftcli prepare` shows of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.conftest import pair


def test_each_file_is_named_whose_rows_are_counted(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, numbers in {"learnt": range(9), "held": range(20, 24)}.items():
        lines = (json.dumps(pair(number)) + "\n" for number in numbers)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    data = {"train": "learnt.jsonl", "validation": 0, "test": "held.jsonl"}
    assert run(["prepare", str(write_recipe(data=data))]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "learnt.jsonl + held.jsonl: 13 rows → 9 train, 4 test"


def test_empty_columns_of_templates_are_counted(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"Vase {number},{'' if number < 2 else 'red'},A vase.\n" for number in range(8)]
    (tmp_path / "rows.csv").write_text("".join(("name,colour,text\n", *rows, " ,,A jug.\n")))
    keys = {"prompt": "Name: {name}\nColour: {colour}\n", "completion": "text"}
    recipe = write_recipe(data={"train": "rows.csv", "validation": 0, **keys})
    assert run(["prepare", str(recipe)]) == 0
    shown = "  empty       3 rows have an empty {colour}, 1 row has an empty {name}"
    assert shown in capsys.readouterr().out.splitlines()
    assert run(["prepare", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["empty_columns"] == {"colour": 3, "name": 1} and found["rows_accepted"] == 9
