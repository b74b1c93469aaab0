"""training.report_to: TensorBoard for real, the others by what they receive."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from tests.commands.test_training import stop_at, train
from tests.conftest import Capture, Patch, Recipes

TRAINING = {"epochs": 1, "batch_size": 4, "learning_rate": "1e-3", "eval_steps": 4}

# What transformers asks of trackio; each call is a line of a file.
TRACKIO = """
import json, pathlib
__version__ = "0"
class Config(dict):
    def update(self, values, allow_val_change): pass
class Space:
    def get(self): return None
class context_vars:
    current_space_id = Space()
config = Config()
def received(call, **values):
    with (pathlib.Path(__file__).parent / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"call": call, **values}, default=str) + "\\n")
def init(**values):
    FAIL
    received("init", name=values["name"])
def log(values): received("log", **values)
def finish(): received("finish")
"""


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: tag → (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def records(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [(line["step"], line[name]) for line in lines if name in line]


def tracking(*names: str) -> dict[str, Any]:
    return {**TRAINING, "report_to": list(names)}


def test_tensorboard_shows_what_the_run_recorded_also_where_it_was_stopped(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    recipe = write_recipe(training=tracking("tensorboard"))
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        assert train(recipe) == 130
    folder = tmp_path / "runs" / "tiny"
    assert [step for step, _ in scalars(folder / "logs")["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert train(recipe) == 0
    files = list((folder / "logs").rglob("*"))
    assert len(files) == 2 and all(file.name.startswith("events.out") for file in files)
    shown = scalars(folder / "logs")
    for tag, name in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        kept = records(folder, name)
        assert [step for step, _ in shown[tag]] == [step for step, _ in kept]
        assert [value for _, value in shown[tag]] == pytest.approx([value for _, value in kept])
    assert [step for step, _ in shown["eval/loss"]] == [0, 4, 8]
    rates = [rate for _, rate in shown["train/learning_rate"]]
    assert rates == pytest.approx([rate for _, rate in records(folder, "learning_rate")])
    assert max(rates) == pytest.approx(1e-3) and rates[-1] < 2e-4
    wanted = {"train/loss", "train/learning_rate", "train/grad_norm", "train/epoch", "eval/loss"}
    assert set(shown) == wanted, "as docs/forgetting.md lists them"


def test_epochs_are_counted_by_rows(write_recipe: Recipes, tmp_path: Path) -> None:
    """Trainer counts the whole run as one epoch; here 32 rows are one, 4 rows per step."""
    recipe = write_recipe(training=tracking("tensorboard") | {"epochs": 3, "max_steps": 10})
    assert train(recipe) == 0
    found = scalars(tmp_path / "runs" / "tiny" / "logs")["train/epoch"]
    assert dict(found) == {step: pytest.approx(step / 8) for step in range(1, 11)}


def test_repeated_steps_are_logged_once(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    """As after a kill: steps after the last checkpoint were logged."""
    import shutil

    recipe = write_recipe(training=tracking("tensorboard") | {"save_steps": 2})
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        assert train(recipe) == 130
    folder = tmp_path / "runs" / "tiny"
    shutil.rmtree(folder / "checkpoints" / "step-6")
    assert train(recipe) == 0
    assert [step for step, _ in scalars(folder / "logs")["train/loss"]] == list(range(1, 9))


def test_a_folder_of_the_user_s_goes_before(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    recipe = write_recipe(training=tracking("tensorboard") | {"max_steps": 1})
    assert train(recipe) == 0
    assert "train/loss" in scalars(tmp_path / "elsewhere")
    assert not (tmp_path / "runs" / "tiny" / "logs").exists()


# The others


@pytest.fixture
def trackio(tmp_path: Path, monkeypatch: Patch) -> Iterator[Callable[[str], Path]]:
    """A package that records its calls; the line in place of FAIL runs first."""

    def install(first: str) -> Path:
        package = tmp_path / "packages" / "trackio"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(TRACKIO.replace("FAIL", first))
        monkeypatch.syspath_prepend(str(package.parent))
        monkeypatch.delitem(sys.modules, "trackio", raising=False)
        return package / "calls.jsonl"

    yield install
    sys.modules.pop("trackio", None)


def test_another_tracker_gets_the_same_values(
    write_recipe: Recipes, tmp_path: Path, trackio: Callable[[str], Path]
) -> None:
    calls = trackio("pass")
    assert train(write_recipe("shop", training=tracking("trackio"))) == 0
    lines = [json.loads(line) for line in calls.open()]
    assert lines[0] == {"call": "init", "name": "shop"}
    assert lines[-1] == {"call": "finish"}
    folder = tmp_path / "runs" / "shop"
    for tag, name in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        shown = [(line["train/global_step"], line[tag]) for line in lines if tag in line]
        kept = records(folder, name)
        assert [step for step, _ in shown] == [step for step, _ in kept]
        assert [value for _, value in shown] == pytest.approx([value for _, value in kept])


def test_a_tracker_that_fails_to_start_is_named(
    write_recipe: Recipes, tmp_path: Path, trackio: Callable[[str], Path], capsys: Capture
) -> None:
    trackio('raise ValueError("no API key")')
    assert train(write_recipe(training=tracking("trackio"))) == 1
    said = capsys.readouterr().err
    assert "training.report_to: trackio failed to start: no API key; set it up" in said
    assert "tiny.yaml:" in said and "Traceback" not in said


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_all_of_them_are_passed_on(name: str, tmp_path: Path) -> None:
    from ftcli.training.building import sft_config
    from ftcli.training.plan.decide import make_plan
    from tests.training.planning import PROFILE, SMALL, cpu, recipe

    asked = recipe(training={"report_to": [name]})
    plan = make_plan(asked, SMALL, PROFILE, cpu())
    config = sft_config(asked.training, plan, tmp_path, "shop")
    assert (config.report_to, config.run_name) == ([name], "shop")
    plain = sft_config(recipe().training, plan, tmp_path, "shop")
    assert plain.report_to == [], "also where such packages are installed"


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--smoke-test"]])
def test_missing_packages_are_named_before_anything_is_opened(
    flags: list[str], write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    from ftcli.training import job

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wandb").mkdir()  # as wandb leaves it, which Python imports as a package
    monkeypatch.setattr(job, "find_architecture", lambda *_: pytest.fail("the model was opened"))
    recipe = write_recipe(training=tracking("mlflow", "tensorboard", "wandb"))
    assert run(["train", str(recipe), *flags]) == 1
    said = capsys.readouterr().err
    assert "mlflow and wandb are not installed: pip install mlflow wandb" in said
    assert "tiny.yaml:" in said and "training.report_to" in said and "Traceback" not in said
    assert not list((tmp_path / "runs").rglob("*"))
