"""A signal in a step, in a validation, in a save, around them, and twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.runs.checkpoints import latest_valid
from ftcli.runs.folder import RunFolder
from ftcli.training.resuming import delete_leftovers
from tests.conftest import Capture, Observed, Patch, Recipes, save_recipe, save_rows
from tests.faults.disk_states import Watcher
from tests.faults.moments import weights_of
from tests.tiers import tiers

ROOT = Path(__file__).resolve().parents[2]
METHOD = {"mode": "lora", "rank": 4, "dropout": 0.1}
TRAINING = {
    "epochs": 1,
    "batch_size": 4,
    "micro_batch_size": 2,
    "eval_steps": 2,
    "save_steps": 3,
    "early_stopping_patience": 3,
}
# Where the signal comes, and the function that is running then.
MOMENTS = {
    "a step": ("ftcli.models.loss", "summed_loss"),
    "a validation": ("ftcli.training.trainer", "row_losses"),
    "a save": ("ftcli.training.checkpoint", "save_resumable"),
}


def train(recipe: Path) -> int:
    return run(["train", str(recipe)])


def signal_during(where: str, call: int, number: int, monkeypatch: Patch) -> None:
    """Send a signal to this process in the n-th call, from 1."""
    module, name = MOMENTS[where]
    original: Any = getattr(sys.modules[module], name)
    calls = []

    def watched(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    monkeypatch.setattr(f"{module}.{name}", watched)


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run."""

    weights: str
    records: str
    best_step: int


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    save_rows(place)
    recipe = save_recipe(place, tiny_model, "shop", method=METHOD, training=TRAINING)
    assert train(recipe) == 0
    folder = RunFolder(place / "runs" / "shop")
    best = folder.read_manifest()["result"]["best_step"]
    return Whole(weights_of(folder.path), folder.metrics.read_text(), best)


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    ("where", "call", "saved", "number"),
    [
        # The check of the longest batch takes one call, each step two.
        ("a step", 5, 2, signal.SIGINT),
        pytest.param("a step", 9, 4, signal.SIGTERM, marks=pytest.mark.slow),
        # The check takes one, and each validation four; the first is before the first step.
        ("a validation", 7, 2, signal.SIGTERM),
        pytest.param("a validation", 9, 2, signal.SIGINT, marks=pytest.mark.slow),
        # The check takes one; then step 2 for its validation, step 3.
        pytest.param("a save", 2, 2, signal.SIGINT, marks=pytest.mark.slow),
        ("a save", 3, 3, signal.SIGTERM),
    ],
)
def test_a_signal_loses_nothing(
    where: str,
    call: int,
    saved: int,
    number: signal.Signals,
    whole: Whole,
    write_recipe: Recipes,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
    observed: Observed,
) -> None:
    import ftcli.training.train  # noqa: F401

    recipe = write_recipe("shop", method=METHOD, training=TRAINING)
    folder = RunFolder(tmp_path / "runs" / "shop")
    with monkeypatch.context() as patch:
        signal_during(where, call, number, patch)
        assert train(recipe) == 128 + number
    said = capsys.readouterr().err
    checkpoint = folder.checkpoint(saved).relative_to(tmp_path)
    assert f"stopped at step {saved} of 8 (checkpoint {checkpoint})" in said
    assert said.rstrip().endswith(f"Resume: ftcli train {recipe.name}")
    assert folder.state == "stopped" and not folder.adapter.exists()
    assert train(recipe) == 0
    assert weights_of(folder.path) == whole.weights
    assert folder.read_manifest()["result"]["best_step"] == whole.best_step
    assert folder.metrics.read_text() == whole.records
    observed(f"{number.name} in {where}: {128 + number}, the same sha256")


@pytest.mark.slow
@pytest.mark.fault(1, 6)
def test_every_state_of_a_replaced_save_is_valid(
    whole: Whole, write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, observed: Observed
) -> None:
    """The deferred validation is saved over the only checkpoint."""
    from ftcli.training import train as training

    recipe = write_recipe("shop", method=METHOD, training=TRAINING)
    folder = RunFolder(tmp_path / "runs" / "shop")
    with monkeypatch.context() as patch:
        signal_during("a validation", 7, signal.SIGINT, patch)
        assert train(recipe) == 130
    assert folder.steps_saved() == [2]
    watcher = Watcher(folder.path, tmp_path / "states")
    original = training._validate_deferred

    def watched(*arguments: Any) -> None:
        with watcher.watching():
            original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_validate_deferred", watched)
        assert train(recipe) == 0
    run_id = folder.read_manifest()["run_id"]
    outcomes: dict[bool, Path] = {}
    states = 0
    for state in watcher.all_states():
        kept = shutil.copytree(state, tmp_path / "kept")
        delete_leftovers(RunFolder(kept))
        found = latest_valid(RunFolder(kept), run_id)
        assert found.checkpoint is not None and found.checkpoint.position.step == 2
        records = (kept / "checkpoints" / "step-2" / "records.jsonl").read_text()
        validated = '"step": 2, "eval_loss"' in records
        if validated not in outcomes:
            outcomes[validated] = shutil.copytree(state, tmp_path / f"outcome-{validated}")
        shutil.rmtree(kept)
        states += 1
    same = 0
    for kept in outcomes.values():
        shutil.copytree(folder.data, kept / "data")
        shutil.rmtree(folder.path)
        shutil.copytree(kept, folder.path)
        assert train(recipe) == 0
        same += weights_of(folder.path) == whole.weights
    observed(f"{states} states of a save over the only checkpoint: one of two is always whole")
    assert same == len(outcomes) == 2


@pytest.mark.fault(6, 15, 32)
@pytest.mark.parametrize("error", tiers(["memory", "nan"], "memory"))
def test_an_interrupted_validation_changes_no_random_state(
    error: str, whole: Whole, write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    import torch

    from ftcli.training import trainer

    recipe = write_recipe("shop", method=METHOD, training=TRAINING)
    original, calls = trainer.row_losses, []

    def fails(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 6 and error == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        losses, counts = original(*arguments)
        return (losses * float("nan") if len(calls) > 6 else losses), counts

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "row_losses", fails)
        assert train(recipe) == 1
    folder = RunFolder(tmp_path / "runs" / "shop")
    assert folder.steps_saved() == [2]
    assert train(recipe) == 0
    assert weights_of(folder.path) == whole.weights


@pytest.mark.fault(6)
def test_a_run_that_would_have_ended_early_does_so_when_it_resumes(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The signal comes in the validation at which patience ends."""
    # Steps too small to change anything: the second validation is no better than the first.
    still = TRAINING | {"learning_rate": 1e-12, "optimizer": "sgd", "early_stopping_patience": 1}
    import ftcli.training.train  # noqa: F401

    assert train(write_recipe("whole", training=still)) == 0
    recipe = write_recipe("shop", training=still)
    with monkeypatch.context() as patch:
        signal_during("a validation", 10, signal.SIGINT, patch)
        assert train(recipe) == 130
    shop, whole = (RunFolder(tmp_path / "runs" / name) for name in ("shop", "whole"))
    assert shop.steps_saved()[-1] == 4
    assert train(recipe) == 0
    results = [folder.read_manifest()["result"] for folder in (whole, shop)]
    assert [result["steps"] for result in results] == [4, 4]
    assert [result["best_step"] for result in results] == [2, 2]
    assert weights_of(shop.path) == weights_of(whole.path)
    assert shop.metrics.read_text() == whole.metrics.read_text()


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    "where", tiers(["the rows", "the model", "the answers"], "the rows", "the answers")
)
def test_a_signal_outside_the_steps_ends_immediately(
    where: str,
    whole: Whole,
    write_recipe: Recipes,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
) -> None:
    from ftcli.data.tokenizing import tokenize
    from ftcli.inference import endings
    from ftcli.training import building

    places = {
        "the rows": (tokenize, "_dataset"),
        "the model": (building, "load_base"),
        "the answers": (endings, "answer_prompts"),
    }
    module, name = places[where]
    recipe = write_recipe("shop", method=METHOD, training=TRAINING)
    folder = RunFolder(tmp_path / "runs" / "shop")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        assert train(recipe) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    stands = {
        "the rows": "stopped before the training began. Begin again: ",
        "the model": "stopped before the first checkpoint. Begin again: ",
        "the answers": "stopped at step 8 of 8",
    }[where]
    assert stands in said and f"ftcli train {recipe.name}" in said and "Traceback" not in said
    assert train(recipe) == 0
    assert weights_of(folder.path) == whole.weights


SECOND = """
import os, signal, sys
from ftcli.cli import run
from ftcli.training.resuming import delete_leftovers
from tests.conftest import save_recipe, save_rows
from tests.faults.disk_states import Watcher
from ftcli.models import loss as losses

original, calls = losses.summed_loss, []

def slow(*arguments):
    calls.append(1)
    if len(calls) == 9:  # in the fourth step, after a checkpoint of the third
        os.kill(os.getpid(), signal.SIGTERM)
        print("first", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("second survived", flush=True)
    return original(*arguments)

losses.summed_loss = slow
sys.exit(run(["train", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.fault(6)
def test_a_second_signal_ends_immediately_and_the_last_checkpoint_is_valid(
    whole: Whole, write_recipe: Recipes, tmp_path: Path, observed: Observed
) -> None:
    recipe = write_recipe("shop", method=METHOD, training=TRAINING)
    found = subprocess.run(
        [sys.executable, "-c", SECOND, str(recipe)], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == -signal.SIGINT, found.stderr  # a shell shows 130
    assert found.stdout.splitlines() == ["first"]
    assert "stopping after this step" in found.stderr
    folder = RunFolder(tmp_path / "runs" / "shop")
    assert folder.state == "training" and folder.steps_saved() == [2, 3]
    assert train(recipe) == 0
    assert weights_of(folder.path) == whole.weights
    observed("a second one: at once, the last checkpoint whole, the same sha256")
