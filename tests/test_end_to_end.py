"""All six commands on a tiny random model, in one process, for every method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run

METHODS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora", "rank": 4},
    "qlora": {"mode": "qlora", "rank": 4},
}
TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
STATE = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run one command with --json and read its one object."""
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", METHODS)
def test_six_commands(
    mode: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(method=METHODS[mode])

    prepared = ask(capsys, "prepare", recipe)
    assert prepared["rows_read"] == 48
    assert prepared["train_rows"] == 32
    assert prepared["rows_read"] == prepared["rows_accepted"] + prepared["rows_rejected"]

    estimate = ask(capsys, "estimate-vram", recipe)
    parts = {k: v for k, v in estimate["breakdown"].items() if k != "context"}
    assert estimate["peak_bytes"] == sum(parts.values())

    trained = ask(capsys, "train", recipe)
    folder = Path(trained["run_dir"])
    assert trained["state"] == "finished" and trained["steps"] == 8
    assert trained["eval_loss"] < trained["first_eval_loss"]
    assert trained["trained_parameters"] == estimate["trainable_parameters"]

    weights = {f"model/{n}" for n in MODEL} if mode == "full" else set()
    if mode != "full":
        weights = {f"adapter/{n}" for n in ADAPTER}
    saved = (MODEL if mode == "full" else ADAPTER) | STATE
    checkpoints = {f"checkpoints/step-{step}/{n}" for step in (4, 8) for n in saved}
    where = "model" if mode == "full" else "adapter"
    data = {
        f"data/{n}"
        for n in ("prepared.json", *(f"{s}.arrow" for s in ("train", "validation", "test")))
    }
    expected = weights | checkpoints | data | {f"{where}/{n}" for n in TOKENIZER}
    expected |= {"README.md", "metrics.jsonl", "plan.json", "recipe.yaml", "run.json"}
    assert files_below(folder) - {".lock"} == expected

    again = ask(capsys, "train", recipe)
    assert again == trained

    scores = ask(capsys, "eval", recipe)
    assert scores["rows"] == 8
    assert scores["tuned"]["loss"] < scores["base"]["loss"]
    low, high = scores["tuned"]["stop_rate_interval"]
    assert low <= scores["tuned"]["stop_rate"] <= high

    answer = ask(capsys, "generate", folder, "Product: kettle 99\nColour: red")
    assert isinstance(answer["completion"], str)

    merged = ask(capsys, "merge", folder)
    if mode == "full":
        assert merged["verdict"] == "nothing to merge"
    else:
        assert merged["verdict"] == "pass"
        target = Path(merged["output"])
        assert files_below(target) == MODEL | TOKENIZER | {"merge_report.json"}
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(merged["output"])
    assert alone.num_parameters() == trained["total_parameters"]
