"""Which rows of a source are replayed, and how little memory it takes."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.config.data import BUILTIN_RATIO
from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Replay
from ftcli.data import replay as module
from ftcli.data.example import Example, Message, Origin, RejectedRow
from ftcli.data.replay import BUILTIN_FILE, ReplaySource, read_source
from ftcli.evaluation.general_ability import BUILT_IN_INSTRUCTIONS

SEED = 7


def conversation(number: int) -> Example:
    turns = (Message("user", f"Ask {number}."), Message("assistant", f"Say {number}."))
    return Example(turns, Origin("general.jsonl", number))


def read(
    monkeypatch: pytest.MonkeyPatch, rows: Iterator[Example | RejectedRow], held_out: set[bytes]
) -> ReplaySource:
    monkeypatch.setattr(module, "replayed_examples", lambda replay: rows)
    replay = Replay(source="general.jsonl")
    return read_source(replay, SEED, held_out, lambda: None)


def test_the_order_is_that_of_the_places_and_of_equal_rows_the_first_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(3)
    numbers = [chance.randrange(400) for _ in range(1000)]
    held = {conversation(number).question_digest() for number in range(50)}
    rows: list[Example | RejectedRow] = [conversation(number) for number in numbers]
    for place in (0, 10, 500):
        rows.insert(place, RejectedRow(Origin("general.jsonl", 1), "empty"))
    found = read(monkeypatch, iter(rows), held)
    first: dict[bytes, int] = {}
    for index, number in enumerate(numbers):
        if number >= 50:
            first.setdefault(conversation(number).digest(), index)
    wanted = sorted(first, key=lambda digest: module._place(SEED, digest))
    assert list(found.order) == [first[digest] for digest in wanted]
    assert found.held_out == sum(number < 50 for number in numbers)
    assert found.duplicates == 1000 - found.held_out - len(first)
    assert (found.rows_read, found.rejected) == (1003, 3)


@pytest.mark.parametrize("rows", [0, 1])
def test_of_no_row_or_one(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, iter([conversation(0)][:rows]), set())
    assert list(found.order) == list(range(rows)) and found.duplicates == 0


def test_digests_that_end_in_zeros_are_none_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy strips trailing zero bytes, which must not make digests equal."""
    ends = [b"a" * 15 + b"\0", b"a" * 14 + b"\0\0", b"a" * 16]
    digests = iter([*ends, ends[1]])
    monkeypatch.setattr(Example, "digest", lambda _: next(digests))
    found = read(monkeypatch, (conversation(number) for number in range(4)), set())
    wanted = sorted(range(3), key=lambda index: module._place(SEED, ends[index]))
    assert list(found.order) == wanted and found.duplicates == 1


def test_a_row_of_the_source_takes_a_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest, a number, and temporarily what sorting needs."""
    rows = 20_000
    read(monkeypatch, iter([conversation(0)]), set())  # numpy is there
    tracemalloc.start()
    try:
        found = read(monkeypatch, map(conversation, range(rows)), set())
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.order) == rows
    assert held / rows < 10 and peak / rows < 130


WriteRecipe = Callable[..., Path]
ROWS = [json.loads(line) for line in BUILTIN_FILE.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_rows_of_many_kinds_and_lengths() -> None:
    assert len(ROWS) == 320
    kinds = [row["kind"] for row in ROWS]
    assert len(set(kinds)) == 16 and all(kinds.count(kind) == 20 for kind in kinds)
    lengths = sorted(len(row["completion"].split()) for row in ROWS)
    assert lengths[0] <= 3 and lengths[-1] >= 120 and 30 <= lengths[160] <= 50
    for row in ROWS:
        assert set(row) == {"kind", "prompt", "completion"}
        assert all(value == value.strip() and value for value in row.values())
    assert len({row["prompt"] for row in ROWS}) == 320


def test_none_of_them_is_one_that_measures() -> None:
    measuring = [
        json.loads(line)["prompt"] for line in BUILT_IN_INSTRUCTIONS.read_text("utf-8").splitlines()
    ]
    for prompt in measuring:
        for row in ROWS:
            shared = words(prompt) & words(row["prompt"])
            assert len(shared) <= 0.5 * len(words(prompt) | words(row["prompt"])), row["prompt"]


@pytest.mark.parametrize(
    ("written", "source", "ratio"),
    [
        ("builtin", "builtin", BUILTIN_RATIO),
        ("general.jsonl", "general.jsonl", 0.15),
        ({"source": "builtin", "ratio": 0.3}, "builtin", 0.3),
    ],
)
def test_a_source_alone_is_enough(
    write_recipe: WriteRecipe, written: Any, source: str, ratio: float
) -> None:
    data = {"train": "rows.jsonl", "replay": written}
    recipe = write_recipe(data=data)
    replay = load_recipe(recipe).recipe.data.replay
    whole = source if source == "builtin" else str(recipe.parent / source)
    assert replay is not None and (replay.source, replay.ratio) == (whole, ratio)


def test_the_task_is_seen_as_often_as_without(
    write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = []
    for replay in (None, "builtin"):
        data = {"train": "rows.jsonl", "replay": replay, "max_length": 256}
        training = {"max_steps": 20, "batch_size": 4}
        recipe = write_recipe(data=data, training=training)
        assert run(["train", str(recipe), "--dry-run", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    without, replayed = (plan["plan"] for plan in plans)
    assert without["steps"] == 20
    assert replayed["steps"] == 23  # 20 of the task's rows ÷ 7/8
    assert "20 for the task's rows, the others for data.replay" in replayed["reasons"]["steps"]
