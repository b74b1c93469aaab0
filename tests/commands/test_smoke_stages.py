"""`ftcli train --smoke-test`: every stage runs, only the prepared data stay; flags and signals."""

from __future__ import annotations

import json
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.data.dataset import load_dataset
from ftcli.runs.folder import RunFolder
from tests.conftest import Capture, Patch, Recipes
from tests.leftovers import DATA, leftovers

pytestmark = pytest.mark.slow

METHODS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora", "rank": 4, "dropout": 0.1, "modules_to_save": ["embed_tokens"]},
    "qlora": {"mode": "qlora", "rank": 4},
    "bottleneck": {"mode": "bottleneck", "bottleneck": 8},
    "prefix-tuning": {"mode": "prefix-tuning", "projection": True},
    "prompt-tuning": {"mode": "prompt-tuning", "init_text": "Product"},
}
STAGES = [
    "check",
    "prepare",
    "plan",
    "tiny model",
    "longest batch",
    "train",
    "resume",
    "eval",
    "merge",
    "generate",
]


@pytest.mark.parametrize("mode", METHODS)
def test_every_method_passes_and_the_data_stay_for_the_training(
    mode: str, write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe(method=METHODS[mode])
    assert run(["train", str(recipe), "--smoke-test", "--json"]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {"smoke_test", "seconds", "stages", "data", "plan"}
    assert found["smoke_test"] == "passed"
    assert [stage["name"] for stage in found["stages"]] == STAGES
    assert all(set(stage) == {"name", "seconds", "detail"} for stage in found["stages"])
    assert err.count("\nsmoke test ") == len(STAGES) - 1
    assert leftovers(tmp_path) == DATA and not list(tmp_path.rglob(".tmp-*"))
    details = {stage["name"]: stage["detail"] for stage in found["stages"]}
    assert details["train"] == "validated, saved, stopped by SIGTERM after step 2"
    assert details["resume"].startswith("from step 2 to 4; ")
    assert details["eval"] == "base and tuned on 2 test rows"
    data = tmp_path / "runs" / "tiny" / "data"
    assert found["data"] == str(data)
    # What the training would do, not the smoke test.
    assert found["plan"]["steps"] == 8
    mark = load_dataset(data)
    assert run(["train", str(recipe), "--dry-run"]) == 0
    assert "prepare " not in capsys.readouterr().err
    assert load_dataset(data) == mark


def test_leftovers_of_a_killed_smoke_test_are_no_obstacle(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    write_recipe()
    left = tmp_path / "runs" / ".tmp-smoke-test-tiny" / "run"
    left.mkdir(parents=True)
    (left / "run.json").write_text('{"state": "finished"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["train", "tiny.yaml", "--smoke-test", "--set", "training.seed=7"]) == 0
    out, err = capsys.readouterr()
    stages = [line for line in err.splitlines() if line.startswith("smoke test")]
    assert stages[0].startswith("smoke test  1/10  check          llama on ")
    assert stages[-1].startswith("smoke test 10/10  generate       up to 8 tokens (")
    verdict, plan, *rest = out.splitlines()
    assert verdict.startswith("smoke test passed in ")
    assert plan.startswith("plan   ") and plan.endswith(" 8 steps")
    assert rest == ["data   runs/tiny/data", "next   ftcli train tiny.yaml --set training.seed=7"]
    assert leftovers(tmp_path) == DATA and not list(tmp_path.rglob(".tmp-*"))


def test_an_existing_run_is_not_touched(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe()
    assert run(["train", str(recipe), "--set", "training.max_steps=1"]) == 0
    folder = tmp_path / "runs" / "tiny"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(["train", str(recipe), "--smoke-test"]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_the_small_models_recipe_passes(small_model: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "ecommerce-qlora.yaml"
    values = [f"model.id={small_model}", f"output={tmp_path / 'runs' / 'shop'}"]
    flags = [word for value in values for word in ("--set", value)]
    assert run(["train", str(recipe), "--smoke-test", "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == STAGES
    assert found["plan"]["steps"] == 76  # a tenth is replayed
    assert leftovers(tmp_path) == DATA | {"replay.arrow"}


def test_the_model_of_a_stage_is_freed_before_the_next(
    write_recipe: Recipes, monkeypatch: Patch
) -> None:
    from ftcli.cli.train import smoke_test
    from ftcli.training import train as training

    models: list[weakref.ref[Any]] = []
    alive: dict[str, int] = {}
    build = training.build_trainer

    def counted(*args: Any) -> Any:
        alive[f"process {len(models) + 1}"] = sum(model() is not None for model in models)
        trainer = build(*args)
        models.append(weakref.ref(trainer.model))
        return trainer

    def evaluating(*args: Any) -> str:
        alive["eval"] = sum(model() is not None for model in models)
        return ""

    monkeypatch.setattr(training, "build_trainer", counted)
    monkeypatch.setattr(smoke_test, "_evaluate", evaluating)
    assert run(["train", str(write_recipe()), "--smoke-test"]) == 0
    assert alive == {"process 1": 0, "process 2": 0, "eval": 0}


@pytest.mark.parametrize("where", ["a step", "the evaluation"])
def test_a_signal_ends_it_and_nothing_stays(
    where: str, write_recipe: Recipes, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    from ftcli.cli.train import smoke_test

    def interrupt(*_: object, **__: object) -> None:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:  # a second one would kill
            signal.raise_signal(signal.SIGINT)

    if where == "a step":
        monkeypatch.setattr(smoke_test.Quiet, "update", interrupt)
    else:
        monkeypatch.setattr(smoke_test, "evaluate_run", interrupt)
    assert run(["train", str(write_recipe()), "--smoke-test"]) == 130
    assert capsys.readouterr().err.endswith("smoke test stopped; only the prepared data are kept\n")
    assert leftovers(tmp_path) == DATA and not list(tmp_path.rglob(".tmp-*"))


def test_two_smoke_tests_of_one_output(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe()
    with RunFolder(tmp_path / "runs" / ".tmp-smoke-test-tiny").lock():
        assert run(["train", str(recipe), "--smoke-test"]) == 1
    assert "smoke test, check: " in (said := capsys.readouterr().err) and "is writing here" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dry-run"], "--smoke-test shows the plan too: leave --dry-run out"),
        (["--resume"], "--smoke-test touches no run: leave --resume out"),
        (["--fresh"], "--smoke-test touches no run: leave --fresh out"),
        (
            ["--from", "runs/x"],
            "--smoke-test trains a tiny random model, which the weights of runs/x",
        ),
    ],
)
def test_flags_that_a_smoke_test_does_not_take(
    flags: list[str], message: str, write_recipe: Recipes, capsys: Capture
) -> None:
    assert run(["train", str(write_recipe()), "--smoke-test", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_failure_is_one_json_object(write_recipe: Recipes, capsys: Capture) -> None:
    recipe = write_recipe(method={"mode": "lora", "target_modules": ["q_prj"]})
    assert run(["train", str(recipe), "--smoke-test", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "target_modules"
    assert error["message"].startswith("smoke test, check: ")
    assert error["file"].endswith("tiny.yaml") and error["line"] == 6
