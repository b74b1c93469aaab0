"""What `ftcli train` prints, from results made by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.cli.train import train_recipe as command
from ftcli.cli.train.train_recipe import DryRun, Trained
from ftcli.config.loader import load_recipe
from ftcli.memory.hardware import Hardware
from ftcli.models.architectures.find import find_architecture
from ftcli.runs.folder import RunFolder
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics, short_key
from tests.conftest import Capture, Patch

RECIPE = """\
name: shop
model:
  id: smollm2-135m
method:
  mode: lora
data:
  train: shop.jsonl
training:
  max_steps: 32
  batch_size: 8
"""
REPORT = {
    "state": "finished",
    "steps": 32,
    "train_loss": 1.5,
    "eval_loss": 0.904,
    "first_eval_loss": 2.306,
    "best_step": 24,
    "tokens_per_second": 300.5,
    "trainable_parameters": 4_884_480,
    "total_parameters": 134_515_008,
    "peak_memory_bytes": 1_840_000_000,
    "saved_bytes": 19_600_000,
    "checkpoint_bytes": 117_000_000,
    "training_seconds": 365.0,
    "seconds": 372.4,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: Patch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "shop.yaml").write_text(RECIPE)
    return tmp_path


def trains_to(monkeypatch: Patch, result: Trained) -> list[dict[str, Any]]:
    """Replace the stage by one with this result; the list collects its arguments."""
    asked: list[dict[str, Any]] = []

    def stage(recipe: Path, overrides: list[str], **flags: Any) -> Trained:
        flags.pop("reporter")
        asked.append({"recipe": recipe, "overrides": overrides, **flags})
        return result

    monkeypatch.setattr(command, "train_recipe", stage)
    return asked


def test_a_person_reads_time_loss_and_what_comes_next(
    capsys: Capture, monkeypatch: Patch, here: Path
) -> None:
    trains_to(monkeypatch, Trained(RunFolder(here / "runs" / "shop"), REPORT))
    assert run(["train", "shop.yaml"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out == (
        "done   6 min 12 s · validation loss 2.31 → 0.90 (best: step 24) · peak 1.7 GiB · 19 MiB, "
        "and 112 MiB of checkpoints\n"
        "       runs/shop\n"
        "next   ftcli eval runs/shop\n"
    )


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ({"eval_loss": None, "first_eval_loss": None}, "validation loss not measured"),
        ({"first_eval_loss": None}, "validation loss 0.90 (best: step 24)"),
    ],
)
def test_what_was_not_measured_is_not_shown(
    capsys: Capture, monkeypatch: Patch, here: Path, losses: dict[str, Any], text: str
) -> None:
    trains_to(monkeypatch, Trained(RunFolder(here / "runs" / "shop"), REPORT | losses))
    assert run(["train", "shop.yaml"]) == 0
    assert f" · {text} · " in capsys.readouterr().out


def test_a_finished_run_says_so(capsys: Capture, monkeypatch: Patch, here: Path) -> None:
    found = Trained(
        RunFolder(here / "runs" / "shop"), REPORT, again="ftcli train shop.yaml --fresh"
    )
    trains_to(monkeypatch, found)
    assert run(["train", "shop.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(
        "runs/shop is already finished; to train it again in a new folder: "
        "ftcli train shop.yaml --fresh\n"
    )
    assert err == ""


def test_json_is_the_report_with_its_run(capsys: Capture, monkeypatch: Patch, here: Path) -> None:
    trains_to(monkeypatch, Trained(RunFolder(here / "runs" / "shop"), REPORT))
    assert run(["train", "shop.yaml", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == REPORT | {
        "run_dir": str(here / "runs" / "shop"),
        "trained": True,
    }


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], {}),
        (["--resume"], {}),
        (["--fresh"], {"fresh": True}),
        (["--from", "runs/a"], {"init_from": Path("runs/a")}),
        (["--set", "a=1", "--set", "b=2"], {"overrides": ("a=1", "b=2")}),
    ],
)
def test_flags_reach_the_stage(
    monkeypatch: Patch, here: Path, flags: list[str], asked: dict[str, Any]
) -> None:
    seen = trains_to(monkeypatch, Trained(RunFolder(here / "runs" / "shop"), REPORT))
    assert run(["train", "shop.yaml", *flags]) == 0
    bare = {"recipe": Path("shop.yaml"), "overrides": (), "fresh": False, "init_from": None}
    assert seen == [bare | asked]


def test_resuming_goes_with_no_new_start(capsys: Capture) -> None:
    for flags in (["--fresh"], ["--from", "runs/a"]):
        assert run(["train", "shop.yaml", "--resume", *flags]) == 2
        assert "--resume goes with neither --fresh nor --from" in capsys.readouterr().err


@pytest.fixture
def dry(here: Path) -> DryRun:
    loaded = load_recipe(here / "shop.yaml")
    hardware = Hardware("cpu", "two cores", 16 * 10**9, 12 * 10**9, None, False, 2)
    profile = RowStatistics(340, 70_000, 300, 0.4, 5000)
    plan = make_plan(loaded.recipe, find_architecture("smollm2-135m"), profile, hardware)
    names = dict.fromkeys(plan.reasons, "SFTConfig")
    return DryRun(loaded.recipe, RunFolder(here / "runs" / "shop"), plan, names)


def test_a_dry_run_shows_every_choice_with_its_reason(
    capsys: Capture, monkeypatch: Patch, dry: DryRun
) -> None:
    monkeypatch.setattr(command, "plan_recipe", lambda *_, **__: dry)
    monkeypatch.setenv("COLUMNS", "300")
    assert run(["train", "shop.yaml", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "plan for CPU (two cores) (11.2 GiB free)"
    for key, decided, reason in dry.plan.decisions():
        value = f"{decided:,} tokens" if key == "training.packing" else str(decided)
        if isinstance(decided, bool):
            value = "yes" if decided else "no"
        words = rf"  {short_key(key)} +{re.escape(value)} +"
        shown = [line for line in lines if re.match(words, line)]
        assert len(shown) == 1
        assert shown[0].endswith(f"  {reason}")
    assert f"  {dry.plan.step_text()}" in lines
    memory = next(line for line in lines if line.startswith("memory "))
    assert "weights 513 MiB" in memory
    assert "quantization" not in memory


@pytest.mark.parametrize("columns", [80, 120])
def test_a_dry_run_is_no_wider_than_the_terminal(
    columns: int, capsys: Capture, monkeypatch: Patch, dry: DryRun
) -> None:
    monkeypatch.setattr(command, "plan_recipe", lambda *_, **__: dry)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["train", "shop.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    text = " ".join(out.split())
    assert all(reason in text for reason in dry.plan.reasons.values())


def test_a_dry_run_in_json_is_the_plan(capsys: Capture, monkeypatch: Patch, dry: DryRun) -> None:
    monkeypatch.setattr(command, "plan_recipe", lambda *_, **__: dry)
    assert run(["train", "shop.yaml", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run_dir"] == str(dry.run.path)
    assert found["plan"] == json.loads(dry.plan.model_dump_json())


def test_a_long_reason_does_not_move_the_columns(
    capsys: Capture, monkeypatch: Patch, dry: DryRun
) -> None:
    training = dry.plan.training.model_copy(update={"learning_rate": 0.00012345678})
    plan = dry.plan.model_copy(update={"training": training})
    monkeypatch.setattr(command, "plan_recipe", lambda *_, **__: replace(dry, plan=plan))
    assert run(["train", "shop.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = {
        line.index(reason)
        for reason in plan.reasons.values()
        for line in lines
        if line.endswith(f"  {reason}") and line.startswith("  ")
    }
    assert len(starts) == 1
