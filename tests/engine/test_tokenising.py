"""The second pass writes what the first has seen, or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.data.sides import Sides
from ftcli.engine import encode
from ftcli.errors import DataError
from tests.conftest import pair
from tests.faults.bench import Bench, bench_in

ROWS = [json.dumps(pair(number)) for number in range(6)]


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    return bench_in(tmp_path, tiny_model)


@pytest.mark.parametrize(
    "after",
    [[*ROWS, json.dumps(pair(6))], ROWS[:-1], [*ROWS[:-1], json.dumps(pair(7))]],
    ids=["a row more", "a row less", "another row"],
)
def test_a_file_that_changes_while_it_is_read_is_told(
    after: list[str], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bench.folder / "rows.jsonl"
    file.write_text("\n".join(ROWS))
    first: Callable[..., Sides] = encode.find_sides

    def changing(*arguments: Any) -> Sides:
        found = first(*arguments)
        file.write_text("\n".join(after))
        return found

    monkeypatch.setattr(encode, "find_sides", changing)
    with pytest.raises(DataError) as caught:
        bench.prepare(train="rows.jsonl")
    assert str(caught.value) == "rows.jsonl: has changed while it was read; begin again"
    assert caught.value.code == "data_changed"
    assert [path.name for path in bench.folder.iterdir()] == ["rows.jsonl"]


def test_a_held_out_file_gives_the_recipes_words_no_other_meaning(bench: Bench) -> None:
    """`persona` is a column of the training rows, so that a row without it has no system prompt."""
    row = {"prompt": "a", "completion": "b"}
    (bench.folder / "rows.jsonl").write_text(json.dumps(row | {"persona": "Be brief."}))
    (bench.folder / "held.jsonl").write_text(json.dumps(row | {"prompt": "c"}))
    found = bench.prepare(train="rows.jsonl", validation="held.jsonl", system="persona")
    assert found.prepared.validation.rows == 0
    assert found.problems() == {
        1: "data.system: no column persona; the columns are prompt, completion"
    }
