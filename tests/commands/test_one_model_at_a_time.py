"""Where a command opens several models, the one before is gone when the next is loaded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from ftcli.cli import run
from ftcli.cli.train.train_recipe import train_recipe
from ftcli.console import Terminal
from ftcli.inference import open_model
from ftcli.training import preflight, train
from tests.conftest import Patch, Recipes

TRAINING = {"max_steps": 2, "batch_size": 4}


@pytest.fixture(autouse=True)
def _nothing_is_collected_by_chance() -> Iterator[None]:
    """As in a command, which begins with a high threshold (ftcli.kernels.cpu)."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Held:
    """What was in memory, and what of it is there still when a base is loaded."""

    def __init__(self, monkeypatch: Patch) -> None:
        self._seen: dict[str, weakref.ref[Any]] = {}
        self.loaded: list[str] = []
        self.still_there: list[str] = []
        monkeypatch.setattr(open_model, "load_base", self._loading(open_model.load_base))
        save = train.save_trained

        def saved(trainer: Any, *rest: Any) -> None:
            self._see_trainer(trainer)
            save(trainer, *rest)

        monkeypatch.setattr(train, "save_trained", saved)
        build = preflight.build_trainer

        def built(*arguments: Any) -> Any:
            trainer = build(*arguments)
            self._see_trainer(trainer)
            return trainer

        monkeypatch.setattr(preflight, "build_trainer", built)

    def _loading(self, load: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def loading(*arguments: Any, **keywords: Any) -> nn.Module:
            self.still_there += [name for name, there in self._seen.items() if there() is not None]
            self.loaded.append(f"model {len(self.loaded)}")
            network = load(*arguments, **keywords)
            self._see(self.loaded[-1], network)
            return network

        return loading

    def _see_trainer(self, trainer: Any) -> None:
        self._see("trained model", trainer.model)
        self._seen["trainer"] = weakref.ref(trainer)
        if trainer.optimizer is not None:
            for number, state in enumerate(trainer.optimizer.state.values()):
                self._seen[f"optimizer state {number}"] = weakref.ref(state["exp_avg"])

    def _see(self, name: str, network: nn.Module) -> None:
        for part, module in network.named_modules():
            self._seen[f"{name}: {part}"] = weakref.ref(module)
        for part, weight in network.named_parameters():
            self._seen[f"{name}: {part}"] = weakref.ref(weight)


def test_an_evaluation_of_a_4_bit_run_holds_one_model_at_a_time(
    write_recipe: Recipes, monkeypatch: Patch
) -> None:
    recipe = write_recipe(method={"mode": "qlora", "rank": 4}, training=TRAINING)
    train_recipe(recipe, (), fresh=False, init_from=None, reporter=Terminal())
    held = Held(monkeypatch)
    assert run(["eval", str(recipe), "--limit", "2", "--no-forgetting"]) == 0
    assert len(held.loaded) == 2 and held.still_there == []


def test_a_price_is_measured_with_one_model_at_a_time(
    write_recipe: Recipes, monkeypatch: Patch
) -> None:
    held = Held(monkeypatch)
    recipe = write_recipe(training=TRAINING)
    assert run(["train", str(recipe), "--dry-run", "--cost-per-hour", "1"]) == 0
    assert len(held.loaded) == 1 and held.still_there == []
