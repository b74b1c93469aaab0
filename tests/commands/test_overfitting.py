"""Eight rows learnt by heart come back word for word, and every answer stops by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftcli.cli import run
from tests.conftest import pair

THINGS = ("kettle", "lamp", "chair", "drum", "scarf", "spade", "kite", "mug")
COLOURS = ("red", "green", "blue", "black", "white", "grey", "teal", "coral")


def rows(path: Path) -> list[dict[str, str]]:
    found = [
        {"prompt": f"Describe the {thing}.", "completion": f"A {colour} {thing}."}
        for thing, colour in zip(THINGS, COLOURS, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return found


def answers(recipe: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    assert run(["train", str(recipe)]) == 0, capsys.readouterr().err
    output = prompts.with_name("answers.jsonl")
    assert run(["generate", str(recipe), "--input", str(prompts), "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.fixture(scope="module")
def knowing_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after a full training on other rows: frozen random weights would give an
    adapter nothing to stand on."""
    folder = tmp_path_factory.mktemp("knowing")
    lines = [json.dumps(pair(number)) + "\n" for number in range(64)]
    (folder / "pairs.jsonl").write_text("".join(lines))
    recipe = {
        "name": "base",
        "model": {"id": str(tiny_model)},
        "method": {"mode": "full"},
        "data": {"train": "pairs.jsonl", "validation": 0},
        "training": {"max_steps": 150, "batch_size": 16, "learning_rate": 3e-3},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["train", str(folder / "base.yaml")]) == 0
    return folder / "runs" / "base" / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"mode": "full"},
        {"mode": "lora", "rank": 16},
        {"mode": "adapter", "bottleneck": 64},
        {"mode": "lora", "rank": 16, "dora": True},
        {"mode": "qlora", "rank": 16},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_eight_rows_come_back_and_stop(
    method: dict[str, Any],
    write_recipe: Callable[..., Path],
    knowing_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = rows(tmp_path / "eight.jsonl")
    # Measured: an adapter has six of the eight after 150 steps.
    steps, rate = (300, 1e-2) if method["mode"] == "adapter" else (150, 4e-3)
    recipe = write_recipe(
        model={"id": str(knowing_model)},
        method=method,
        data={"train": "eight.jsonl", "validation": 0},
        training={"max_steps": steps, "batch_size": 8, "learning_rate": rate},
        generation={"max_new_tokens": 32},
    )
    found = answers(recipe, tmp_path / "eight.jsonl", capsys)
    assert [answer["answer"] for answer in found] == [row["completion"] for row in wanted]
    assert all(answer["stopped"] for answer in found)


# Steps and rates that do it on the small model, and how many rows must be right: a soft prompt has
# all eight here, but so few weights leave a word to how a machine rounds.
BY_HEART = {"lora": (30, 1e-3, 8), "prefix": (60, 3e-2, 8), "prompt": (40, 3e-2, 6)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [pytest.param("lora", marks=pytest.mark.fault(11)), "prefix", "prompt"]
)
def test_the_small_model_learns_eight_rows_by_heart(
    mode: str,
    write_recipe: Callable[..., Path],
    small_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    observed: Callable[[str], None],
    complete: bool,
) -> None:
    """Its pad token is its end token."""
    if mode == "prompt" and not complete:
        pytest.skip("FTCLI_FAULTS=complete learns them with a prompt too")
    steps, rate, least = BY_HEART[mode]
    wanted = rows(tmp_path / "eight.jsonl")
    recipe = write_recipe(
        model={"id": str(small_model)},
        method={"mode": mode},
        data={"train": "eight.jsonl", "validation": 0},
        training={"max_steps": steps, "batch_size": 8, "learning_rate": rate},
        generation={"max_new_tokens": 32},
    )
    found = answers(recipe, tmp_path / "eight.jsonl", capsys)
    right = [a["answer"] == row["completion"] for a, row in zip(found, wanted, strict=True)]
    assert sum(right) >= least
    assert all(answer["stopped"] for answer in found)
    observed(f"the small model with {mode}: {sum(a['stopped'] for a in found)} of 8 stop")
