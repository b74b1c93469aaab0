"""The second pass writes what the first has seen, or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from ftcli.data.prepared import RowsOf
from ftcli.data.sides import Sides
from ftcli.data.tokenizing import encode
from ftcli.data.tokenizing.packing import SHARED_TOKENS
from ftcli.data.tokenizing.rows import read_split
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


SYSTEM = "You write a listing for the shop, short and true."
"""Of rows that have it, all begin alike."""


@pytest.mark.parametrize(
    ("system", "replayed"),
    [(SYSTEM, False), (None, False), (SYSTEM, True)],
    ids=["a system prompt", "none", "replayed rows without one"],
)
def test_what_all_rows_begin_with_is_counted(
    system: str | None, replayed: bool, bench: Bench
) -> None:
    rows = [pair(number) for number in range(12)]
    general = [{"prompt": f"Why is {name} so?", "completion": "It is."} for name in "abcdefgh"]
    for name, some in {"rows": rows, "general": general}.items():
        lines = (json.dumps(row) + "\n" for row in some)
        (bench.folder / f"{name}.jsonl").write_text("".join(lines))
    more = {"replay": {"source": "general.jsonl", "share": 0.3}} if replayed else {}
    words = {"system": system} if system is not None else {}
    found = bench.prepare(train="rows.jsonl", **words, **more)
    kinds: list[RowsOf] = ["train", "replay"] if replayed else ["train"]
    ids = [row for kind in kinds for row in read_split(found.folder, kind)["input_ids"].to_pylist()]
    columns = enumerate(zip_longest(*ids))
    expected = next(place for place, column in columns if len(set(column)) > 1)
    assert found.prepared.common_tokens == (expected if expected >= SHARED_TOKENS else 0)
    assert (found.prepared.common_tokens > len(SYSTEM) / 5) == (system is not None and not replayed)


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
