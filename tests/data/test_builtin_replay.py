"""The general instructions that come with ftcli, and the line that asks for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.config.data import BUILTIN_SHARE
from ftcli.config.loader import load_recipe, resolved
from ftcli.data.replay import BUILTIN_FILE
from ftcli.evaluation.general_ability import BUILT_IN_INSTRUCTIONS

WriteRecipe = Callable[..., Path]
ROWS = [json.loads(line) for line in BUILTIN_FILE.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> set[str]:
    return set(re.findall(r"\\w+", text.lower()))


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
    ("written", "source", "share"),
    [
        ("builtin", "builtin", BUILTIN_SHARE),
        ("general.jsonl", "general.jsonl", 0.15),
        ({"source": "builtin", "share": 0.3}, "builtin", 0.3),
    ],
)
def test_a_source_alone_is_enough(
    write_recipe: WriteRecipe, written: Any, source: str, share: float
) -> None:
    data = {"train": "rows.jsonl", "replay": written}
    for recipe in (load_recipe(write_recipe(data=data)), load_recipe(write_recipe(data=data))):
        replay = resolved(recipe).data.replay
        assert replay is not None and (replay.source, replay.share) == (source, share)


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
