"""Stop, resume, --fresh and --from."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from ftcli import console
from ftcli.cli import run
from ftcli.runs.atomic import sha256_file
from tests.conftest import CHATML, Capture, Patch, Recipes
from tests.tiers import tiers

WITH_DROPOUT = {"mode": "lora", "rank": 4, "dropout": 0.1}


def adapter_digest(folder: Path) -> str:
    return sha256_file(folder / "adapter" / "adapter_model.safetensors")


def train(recipe: Path, *flags: str) -> int:
    return run(["train", str(recipe), *flags])


def stop_at(step: int, monkeypatch: Patch, number: int = signal.SIGINT) -> None:
    """Send the signal while this step is logged."""
    from ftcli.training.callbacks import ScheduleCallback

    original = ScheduleCallback.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any, **rest: Any) -> None:
        original(self, args, state, control, logs=logs, **rest)
        if state.global_step == step and "loss" in logs:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ScheduleCallback, "on_log", on_log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_to_the_same_weights(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture, number: int
) -> None:
    whole = write_recipe("whole", method=WITH_DROPOUT)
    assert train(whole, "--set", "training.micro_batch_size=2") == 0
    stopped = write_recipe("stopped", method=WITH_DROPOUT)
    with monkeypatch.context() as patch:
        stop_at(2, patch, number)
        assert train(stopped, "--set", "training.micro_batch_size=2") == 128 + number
    error = capsys.readouterr().err
    assert "stopped at step 3 of 8" in error
    assert error.rstrip().endswith("stopped.yaml --set training.micro_batch_size=2")
    assert "Traceback" not in error
    folder = tmp_path / "runs" / "stopped"
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["state"] == "stopped"
    monkeypatch.setattr(console, "SECONDS_BETWEEN_PLAIN_LINES", 0)
    assert train(stopped, "--set", "training.micro_batch_size=2") == 0
    resumed = capsys.readouterr().err
    assert resumed.index("step 3/8") < resumed.index("preflight: longest batch")
    assert "step 0/8" not in resumed and "more, estimated from one batch" in resumed
    memory = json.loads((folder / "run.json").read_text())["memory"]
    for name, size in manifest["memory"].items():
        if name.endswith("_bytes") and size is not None:
            assert memory[name] >= size, "the maximum of both processes"
    assert adapter_digest(folder) == adapter_digest(tmp_path / "runs" / "whole")
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert [s for s in steps if s] == sorted(s for s in steps if s)


def test_a_finished_run_refuses_another_recipe_and_fresh_starts_a_new_folder(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe()
    assert train(recipe, "--json") == 0
    assert json.loads(capsys.readouterr().out)["trained"] is True
    assert train(recipe, "--set", "training.epochs=2", "--json") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "recipe_changed"
    assert "\n  training.epochs: 1.0 → 2.0\n" in error["message"]
    assert train(recipe, "--set", "generation.max_new_tokens=4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["trained"] is False
    assert train(recipe) == 0
    assert "is already finished" in capsys.readouterr().out
    assert train(recipe, "--fresh") == 0
    digests = {adapter_digest(tmp_path / "runs" / name) for name in ("tiny", "tiny-2")}
    assert len(digests) == 1, "the same recipe twice gives the same adapter"


def test_a_finished_run_refuses_changed_files_and_misses_none_that_is_gone(
    write_recipe: Recipes, tiny_model: Path, rows_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    base, template = tmp_path / "base", tmp_path / "chat.jinja"
    shutil.copytree(tiny_model, base)
    template.write_text(CHATML)
    data = {"train": "rows.jsonl", "validation": 8, "max_length": 256, "template": "chat.jinja"}
    recipe = write_recipe(model={"id": "base"}, data=data)
    assert train(recipe) == 0
    rows = rows_file.read_text()
    rows_file.write_text("".join(rows.splitlines(keepends=True)[5:]))
    template.write_text(CHATML + "\n")
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    capsys.readouterr()
    assert train(recipe, "--json") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "recipe_changed"
    named = [line.partition(":")[0].strip() for line in error["message"].splitlines()]
    assert {"rows of data.train", "chat template", "weights of the base"} <= set(named)
    for path in (rows_file, template, base / "model.safetensors"):
        path.unlink()
    assert train(recipe) == 0
    shutil.rmtree(base)
    assert train(recipe) == 0


def test_from_a_run_starts_from_its_adapter(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    assert train(write_recipe("first")) == 0
    first = tmp_path / "runs" / "first"
    second = write_recipe("second")
    assert train(second, "--from", str(first)) == 0
    begun = json.loads((tmp_path / "runs" / "second" / "run.json").read_text())
    ended = json.loads((first / "run.json").read_text())
    assert begun["parent"] == str(first)
    assert begun["result"]["first_eval_loss"] == pytest.approx(ended["result"]["eval_loss"])
    other = write_recipe("third", method={"mode": "lora", "rank": 8})
    capsys.readouterr()
    assert train(other, "--from", str(first)) == 2
    assert "method.rank: 4 → 8" in capsys.readouterr().err


def test_from_a_full_run_trains_an_adapter_on_its_model(
    write_recipe: Recipes, tmp_path: Path
) -> None:
    assert train(write_recipe("whole", method={"mode": "full"})) == 0
    first = tmp_path / "runs" / "whole"
    assert train(write_recipe("further"), "--from", str(first)) == 0
    manifest = json.loads((tmp_path / "runs" / "further" / "run.json").read_text())
    ended = json.loads((first / "run.json").read_text())
    # Its weights were trained in fp32 and are frozen in 16 bits where the machine has them.
    begun = manifest["result"]["first_eval_loss"]
    assert begun == pytest.approx(ended["result"]["eval_loss"], rel=1e-3)


def test_a_stopped_run_that_came_from_another_resumes_without_from(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    assert train(write_recipe("whole", method={"mode": "full"})) == 0
    further = write_recipe("further")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(further, "--from", str(tmp_path / "runs" / "whole")) == 130
    assert train(further) == 0, capsys.readouterr().err
    manifest = json.loads((tmp_path / "runs" / "further" / "run.json").read_text())
    assert manifest["state"] == "finished"


def test_from_a_4_bit_run_starts_at_exactly_its_weights(
    write_recipe: Recipes, tmp_path: Path
) -> None:
    method = {"mode": "qlora", "rank": 4}
    assert train(write_recipe("first", method=method)) == 0
    first = tmp_path / "runs" / "first"
    assert train(write_recipe("second", method=method), "--from", str(first)) == 0
    ended, begun = (
        json.loads((tmp_path / "runs" / name / "run.json").read_text())["result"]
        for name in ("first", "second")
    )
    assert begun["first_eval_loss"] == ended["eval_loss"]


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_rows_that_are_not_trained_on_are_named(
    flags: tuple[str, ...], write_recipe: Recipes, rows_file: Path, capsys: Capture
) -> None:
    lines = rows_file.read_text().splitlines()
    for place in (3, 8, 9, 20):
        lines[place] = json.dumps({"prompt": "Is it open?", "completion": ""})
    rows_file.write_text("\n".join(lines) + "\n")
    recipe = write_recipe(training={"max_steps": 1, "batch_size": 4})
    assert train(recipe, *flags) == 0
    said = capsys.readouterr().err
    assert "warning: 4 of 48 rows are not used: rows.jsonl:4 completion is empty" in said
    assert "1 more: " in said


@pytest.mark.parametrize("mode", tiers(["lora", "qlora"], "lora"))
def test_validation_in_the_middle_changes_nothing(
    mode: str, write_recipe: Recipes, tmp_path: Path
) -> None:
    training = {"epochs": 1, "batch_size": 4, "learning_rate": "1e-3"}
    method = {"mode": mode, "rank": 4}
    for name, every in (("often", 1), ("once", 8)):
        recipe = write_recipe(name, method=method, training={**training, "eval_steps": every})
        assert train(recipe) == 0
    often, once = (adapter_digest(tmp_path / "runs" / name) for name in ("often", "once"))
    assert often == once


def test_early_stopping_keeps_the_best(write_recipe: Recipes, tmp_path: Path) -> None:
    training = {
        "epochs": 20,
        "batch_size": 4,
        "learning_rate": 0.5,
        "eval_steps": 2,
        "early_stopping_patience": 2,
        "lr_scheduler": "constant",
        "warmup_ratio": 0,
    }
    assert train(write_recipe(training=training)) == 0
    folder = tmp_path / "runs" / "tiny"
    result = json.loads((folder / "run.json").read_text())["result"]
    assert result["steps"] < 160
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    losses = {r["step"]: r["eval_loss"] for r in records if "eval_loss" in r and r["step"]}
    best = min(losses, key=lambda step: losses[step])
    assert result["best_step"] == best and result["eval_loss"] == losses[best]
    kept = sha256_file(folder / "checkpoints" / f"step-{best}" / "adapter_model.safetensors")
    assert kept == adapter_digest(folder)
