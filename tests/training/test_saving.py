"""When a run saves that does not say when to."""

from __future__ import annotations

import pytest

from ftcli.cli import run
from tests.conftest import Patch, Recipes

STEPS = {"max_steps": 4, "batch_size": 4}
WITHOUT_VALIDATION = ("--set", "data.validation=0")


@pytest.fixture
def saved_steps(monkeypatch: Patch) -> list[int]:
    """The steps at which checkpoints are saved, each after the other."""
    from ftcli.training.trainer import FtcliTrainer

    original, steps = FtcliTrainer._save_checkpoint, []

    def save(self: FtcliTrainer, *arguments: object) -> None:
        steps.append(self.state.global_step)
        original(self, *arguments)

    monkeypatch.setattr(FtcliTrainer, "_save_checkpoint", save)
    return steps


@pytest.mark.parametrize(
    ("share", "steps"), [(float("inf"), [1, 2, 3, 4]), (0.0, [4])], ids=["cheap", "dear"]
)
def test_a_save_that_takes_much_of_the_time_is_skipped(
    share: float,
    steps: list[int],
    saved_steps: list[int],
    write_recipe: Recipes,
    monkeypatch: Patch,
) -> None:
    from ftcli.training import callbacks

    monkeypatch.setattr(callbacks, "SAVE_SHARE", share)
    recipe = write_recipe(training=STEPS)
    assert run(["train", str(recipe), *WITHOUT_VALIDATION]) == 0
    assert saved_steps == steps


def test_save_steps_of_the_recipe_always_save(
    saved_steps: list[int], write_recipe: Recipes, monkeypatch: Patch
) -> None:
    from ftcli.training import callbacks

    monkeypatch.setattr(callbacks, "SAVE_SHARE", 0.0)
    recipe = write_recipe(training=STEPS | {"save_steps": 1})
    assert run(["train", str(recipe), *WITHOUT_VALIDATION]) == 0
    assert saved_steps == [1, 2, 3, 4]


def test_the_best_weights_are_always_saved(
    saved_steps: list[int], write_recipe: Recipes, monkeypatch: Patch
) -> None:
    from ftcli.training import callbacks

    monkeypatch.setattr(callbacks, "SAVE_SHARE", 0.0)
    better = {"learning_rate": "1e-2", "eval_steps": 2}
    assert run(["train", str(write_recipe(training=STEPS | better))]) == 0
    assert saved_steps == [2, 4]
