"""A run resumes only with what it began with, and has an exclusive lock."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftcli.cli import run
from ftcli.errors import FtcliError
from ftcli.runs.folder import RunFolder
from tests.commands.test_training import stop_at
from tests.conftest import CHATML, Capture, Observed, Patch, Recipes, save_tiny_model
from tests.faults.moments import weights_of

TRAINING = {"epochs": 1, "batch_size": 4, "learning_rate": "1e-3", "eval_steps": 4}


def train(recipe: Path, *flags: str) -> int:
    return run(["train", str(recipe), *flags])


@pytest.fixture
def stopped(write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch) -> Path:
    """The recipe of a run that was stopped, on a base of its own."""
    base = save_tiny_model(tmp_path / "base", head_dim=16)
    recipe = write_recipe(model={"id": str(base)}, training=TRAINING)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(recipe) == 130
    return recipe


def refused(recipe: Path, capsys: Capture, *flags: str) -> str:
    capsys.readouterr()
    assert train(recipe, "--json", *flags) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] in {"recipe_changed", "prompt_manifest"}
    message: str = error["message"]
    return message


@pytest.mark.fault(3)
def test_what_matters_may_not_change(
    stopped: Path, tmp_path: Path, capsys: Capture, observed: Observed
) -> None:
    said = refused(
        stopped,
        capsys,
        *("--set", "training.learning_rate=5e-4"),
        *("--set", "training.batch_size=8"),
        *("--set", "method.rank=8"),
        *("--set", "training.seed=1"),
    )
    for line in (
        "training.learning_rate: 0.001 → 0.0005",
        "training.batch_size: 4 → 8",
        "method.rank: 4 → 8",
        "training.seed: 42 → 1",
    ):
        assert f"\n  {line}\n" in said
    assert "keys that may change: " in said and "training.eval_steps" in said
    assert "--from" not in said

    longer = refused(stopped, capsys, "--set", "training.epochs=3")
    assert "training.epochs: 1.0 → 3.0" in longer
    assert " --from runs/tiny\n" in longer

    rows = tmp_path / "rows.jsonl"
    text = rows.read_text()
    rows.write_text("".join(reversed(text.splitlines(keepends=True))))
    prepared = tmp_path / "runs" / "tiny" / "data" / "train.arrow"
    before = prepared.read_bytes()
    assert "\n  rows of data.train: " in refused(stopped, capsys)
    assert prepared.read_bytes() == before, "the run keeps its own rows"
    rows.write_text(text)

    template = tmp_path / "base" / "chat_template.jinja"
    template.write_text(CHATML.replace("<|im_start|>", "<|im_start|> "))
    assert "\n  chat template: " in refused(stopped, capsys)
    template.write_text(CHATML)

    weights = tmp_path / "base" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\x00\x00\x00\x40")
    assert "weights of the base" in refused(stopped, capsys)
    weights.write_bytes(whole)
    assert train(stopped) == 0
    observed("rate, batch, rank, seed, epochs, rows, template, base: each refused with old → new")


@pytest.mark.fault(3)
def test_keys_that_do_not_affect_the_weights_may_change_and_are_named(
    stopped: Path, tmp_path: Path, capsys: Capture
) -> None:
    values: dict[str, Any] = yaml.safe_load(stopped.read_text())
    values["training"] |= {"eval_steps": 2, "save_total_limit": 1}
    stopped.write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert train(stopped) == 0
    said = capsys.readouterr().err
    allowed = "note: changed since the run began, and allowed: training"
    assert f"{allowed}.eval_steps: 4 → 2" in said
    assert f"{allowed}.save_total_limit: 2 → 1" in said


def test_a_resume_on_another_machine_warns(stopped: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "model.device: auto → cpu" in refused(stopped, capsys, "--set", "model.device=cpu")
    manifest = RunFolder(tmp_path / "runs" / "tiny").manifest
    began = json.loads(manifest.read_text())
    began["hardware"]["name"] = "NVIDIA GeForce RTX 4090"
    manifest.write_text(json.dumps(began))
    capsys.readouterr()
    assert train(stopped) == 0
    warned = capsys.readouterr().err.replace("\n", " ")
    assert "the run began on NVIDIA GeForce RTX 4090 and resumes on" in warned


@pytest.mark.fault(3)
def test_a_rule_of_this_version_may_not_change_the_order(
    stopped: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """The seeds, the rows and the recipe are the same; the code orders them differently."""
    from ftcli.training import collators

    original = collators.run_rows
    with monkeypatch.context() as patch:
        patch.setattr(collators, "run_rows", lambda *a, **k: list(reversed(original(*a, **k))))
        capsys.readouterr()
        assert train(stopped, "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "order_changed"
    assert train(stopped) == 0


HOLDER = """
import sys, time
from pathlib import Path
from ftcli.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.fault(7)
def test_a_run_has_an_exclusive_lock_that_ends_with_its_process(
    stopped: Path, tmp_path: Path, capsys: Capture, observed: Observed
) -> None:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    before = folder.manifest.read_bytes()
    capsys.readouterr()
    began = time.monotonic()
    assert train(stopped, "--json") == 1
    seconds = time.monotonic() - began
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "run_locked"
    assert f"process {holder.pid} on {socket.gethostname()}, since " in error["message"]
    assert folder.manifest.read_bytes() == before and str(os.getpid()) not in error["message"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert train(stopped) == 0 and weights_of(folder.path)
    observed(f"named process and host within {seconds:.1f} s; free once the holder was killed")


@pytest.mark.fault(4)
def test_checkpoints_without_run_json_are_an_error(
    stopped: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    kept, steps = folder.manifest.read_bytes(), folder.steps_saved()
    folder.manifest.unlink()
    capsys.readouterr()
    assert train(stopped, "--json") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "run_broken" and "and no run.json" in error["message"]
    assert folder.steps_saved() == steps and not folder.manifest.exists()
    folder.manifest.write_bytes(kept)
    plan = folder.plan.read_bytes()
    folder.plan.unlink()
    assert train(stopped, "--json") == 1
    assert "plan.json" in json.loads(capsys.readouterr().out)["error"]["message"]
    folder.plan.write_bytes(plan)
    assert train(stopped) == 0


@pytest.mark.fault(2)
def test_a_skipped_damaged_checkpoint_is_not_counted(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """Neither by save_total_limit nor as the saved step."""
    training = TRAINING | {"save_steps": 1, "save_total_limit": 1, "eval_steps": 100}
    recipe = write_recipe(training=training)
    folder = RunFolder(tmp_path / "runs" / "tiny")
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        assert train(recipe, "--set", "training.save_total_limit=9") == 130
    (folder.checkpoint(4) / "optimizer.pt").write_bytes(b"")
    (folder.checkpoint(3) / "optimizer.pt").write_bytes(b"")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert train(recipe) == 130
    said = capsys.readouterr().err
    assert "step-4 is skipped: " in said and "step-3 is skipped: " in said
    assert "stopped at step 3 of " in said and folder.steps_saved() == [3, 4]
    assert train(recipe) == 0


def test_a_path_may_be_written_in_another_way(
    stopped: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """Other spellings of recipe, rows and base; by the run's folder and by its own recipe."""
    from ftcli.cli.train import train_recipe as stage

    below, link = tmp_path / "below", tmp_path / "link"
    below.mkdir()
    link.symlink_to(tmp_path)
    monkeypatch.chdir(below)
    here, run_folder = Path("..") / stopped.name, tmp_path / "runs" / "tiny"
    ways = [
        (here, ()),
        (here, ("--set", "model.id=../below/../base")),
        (here, ("--set", "data.train=../below/../rows.jsonl")),
        (
            here,
            ("--set", f"data.train={tmp_path / 'rows.jsonl'}", "--set", "model.id=../link/base"),
        ),
        (link / stopped.name, ()),
        (Path("../runs/tiny/recipe.yaml"), ()),
        (run_folder, ()),
        (Path("../link/runs/tiny"), ()),
    ]

    def reached(_: object) -> None:
        raise FtcliError("reached", "nothing has changed")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "require_weights", reached)
        for recipe, flags in ways:
            capsys.readouterr()
            assert train(recipe, *flags, "--json") == 1
            out, err = capsys.readouterr()
            assert json.loads(out)["error"]["code"] == "reached", out
            assert "changed since" not in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rows.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    assert "data.train: " in refused(here, capsys, "--set", "data.train=../other/rows.jsonl")
    assert train(run_folder) == 0
    assert RunFolder(run_folder).state == "finished"
    capsys.readouterr()
    assert train(Path("../link/runs/tiny")) == 0
    assert "is already finished" in capsys.readouterr().out


@pytest.mark.fault(6)
def test_the_command_to_begin_again_has_its_flags(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    from ftcli.data.tokenizing import tokenize

    recipe = write_recipe("first")
    assert train(recipe) == 0
    second = write_recipe("second")
    monkeypatch.setattr(tokenize, "_dataset", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    for flags in (("--from", "runs/first"), ("--fresh",)):
        capsys.readouterr()
        assert train(second, *flags) == 130
        said = capsys.readouterr().err.rstrip()
        assert said.endswith(f"Begin again: ftcli train second.yaml {' '.join(flags)}")


@pytest.mark.fault(32)
def test_a_smaller_micro_batch_may_be_set(stopped: Path, tmp_path: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert train(stopped, "--set", "training.micro_batch_size=1") == 0
    said = capsys.readouterr().err
    assert "allowed: training.micro_batch_size: auto → 1" in said
    folder = RunFolder(tmp_path / "runs" / "tiny")
    newest = folder.checkpoint(folder.steps_saved()[-1])
    assert json.loads((newest / "manifest.json").read_text())["position"]["micro_batch"] == 1
