"""A step is the same however it is split, a run each time; small steps are not lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from ftcli.cli import run
from ftcli.runs.atomic import sha256_file
from ftcli.runs.folder import RunFolder
from ftcli.training import train as training
from tests.commands.test_end_to_end import METHODS
from tests.conftest import Capture, Observed, Patch, Recipes, save_tiny_model
from tests.tiers import tiers

Weights = dict[str, Tensor]


class Watched(TrainerCallback):
    """Gradients of every optimizer step, and the trained weights when the run begins and ends."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []
        self.before: Weights = {}
        self.after: Weights = {}

    def begin(self, model: Any) -> None:
        self.before = trained_weights(model)

    def on_pre_optimizer_step(self, *_: object, model: Any, **__: object) -> None:
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        self.steps.append({name: gradient.clone() for name, gradient in gradients.items()})


def trained_weights(model: Any) -> Weights:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def watch(monkeypatch: Patch) -> Callable[[Path], Watched]:
    """Train a recipe and give what was seen of its steps."""
    build, save = training.build_trainer, training.save_trained

    def train(recipe: Path) -> Watched:
        seen = Watched()

        def built(*arguments: Any) -> Any:
            trainer = build(*arguments)
            seen.begin(trainer.model)
            trainer.add_callback(seen)
            return trainer

        def saved(trainer: Any, *arguments: Any) -> None:
            seen.after = trained_weights(trainer.model)
            save(trainer, *arguments)

        monkeypatch.setattr(training, "build_trainer", built)
        monkeypatch.setattr(training, "save_trained", saved)
        assert run(["train", str(recipe)]) == 0
        return seen

    return train


def off_by(found: Weights, expected: Weights) -> float:
    """The largest difference as a share of the largest number expected."""
    assert found.keys() == expected.keys()
    largest = max(tensor.abs().max().item() for tensor in expected.values())
    assert largest > 0
    return max((found[n] - expected[n]).abs().max().item() for n in expected) / largest


# How a step is cut


# AdamW divides a gradient by its own size: one that is noise makes a whole step too.
LIMITS = {"sgd": 1e-6, "adamw": 1e-4}


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    "mode",
    tiers(
        ["full", "lora", "lora, adamw", "bottleneck", "prefix-tuning", "prompt-tuning"],
        "lora",
        "lora, adamw",
    ),
)
def test_a_step_is_the_same_however_it_is_split(
    mode: str,
    write_recipe: Recipes,
    rows_file: Path,
    watch: Callable[[Path], Watched],
    observed: Observed,
) -> None:
    method, _, optimizer = mode.partition(", ")
    optimizer = optimizer or "sgd"
    rows = [{"prompt": f"mug {n}", "completion": "red, " * (1 + 5 * n % 13)} for n in range(16)]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: dict[int, Watched] = {}
    for micro_batch in (4, 2, 1):
        training = {
            "epochs": 1,
            "batch_size": 4,
            "micro_batch_size": micro_batch,
            "learning_rate": 0.05 if optimizer == "sgd" else 1e-3,
            "optimizer": optimizer,
            "max_grad_norm": 1e9,
            "precision": "fp32",
        }
        recipe = write_recipe(
            f"cut-{micro_batch}",
            method=METHODS[method],
            data={"train": rows_file.name, "validation": 0},
            training=training,
        )
        seen[micro_batch] = watch(recipe)
    whole = seen[4]
    assert len(whole.steps) == 4
    gradients = max(off_by(cut.steps[0], whole.steps[0]) for cut in (seen[2], seen[1]))
    weights = max(off_by(cut.after, whole.after) for cut in (seen[2], seen[1]))
    assert off_by(whole.after, whole.before) > 1e-3, "the weights have moved"
    assert gradients <= 1e-6 and weights <= LIMITS[optimizer]
    observed(f"{method} ({optimizer}): gradients {gradients:.0e}, weights {weights:.0e} off")


# The same again


@pytest.mark.fault(22)
@pytest.mark.parametrize("mode", tiers(METHODS, "qlora"))
def test_the_same_recipe_twice_gives_the_same_weights(
    mode: str, write_recipe: Recipes, tmp_path: Path, observed: Observed
) -> None:
    """With what is drawn at random: rows, dropout, noise on embeddings."""
    method = METHODS[mode] | ({"dropout": 0.1} if "lora" in mode else {})
    training = {"epochs": 1, "batch_size": 4, "eval_steps": 4, "neftune_noise_alpha": 5}
    digests: dict[str, set[str]] = {}
    for name in ("one", "two"):
        assert run(["train", str(write_recipe(name, method=method, training=training))]) == 0
        folder = RunFolder(tmp_path / "runs" / name)
        saved = [
            *folder.trained().glob("*.safetensors"),
            *folder.checkpoints.rglob("*.safetensors"),
        ]
        assert len(saved) == 3
        for file in saved:
            digests.setdefault(str(file.relative_to(folder.path)), set()).add(sha256_file(file))
    assert len(digests) == 3 and all(len(found) == 1 for found in digests.values())
    observed(f"{mode}: the same sha256, of two checkpoints too")


@pytest.mark.fault(22)
@pytest.mark.slow  # two processes that load the whole stack
def test_two_processes_with_other_orders_of_sets_give_the_same_weights(
    write_recipe: Recipes, tmp_path: Path, observed: Observed
) -> None:
    method = METHODS["lora"] | {"dropout": 0.1}
    digests = set()
    for seed in ("1", "2"):
        recipe = write_recipe(f"seed-{seed}", method=method)
        subprocess.run(
            [sys.executable, "-m", "ftcli", "train", str(recipe)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
        adapter = RunFolder(tmp_path / "runs" / f"seed-{seed}").adapter
        digests.add(sha256_file(adapter / "adapter_model.safetensors"))
    assert len(digests) == 1
    observed("two processes: the same sha256")


# Small steps

RATE = 2e-5
STEPS = 3


@pytest.fixture(scope="module")
def stored_in_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path_factory.mktemp("stored") / "tiny", head_dim=16)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def train_in(
    stored_in_bf16: Path, write_recipe: Recipes, watch: Callable[[Path], Watched]
) -> Callable[[str], Watched]:
    """Full fine-tuning of the checkpoint in a precision."""

    def train(precision: str) -> Watched:
        training = {"max_steps": STEPS, "batch_size": 8, "learning_rate": RATE, "warmup_ratio": 0}
        recipe = write_recipe(
            precision,
            model={"id": str(stored_in_bf16)},
            method={"mode": "full"},
            training=training | {"lr_scheduler": "constant", "precision": precision},
        )
        return watch(recipe)

    return train


def share_moved(seen: Watched) -> float:
    """Of the weights that had a gradient in any step, those that have changed."""
    moved = reached = 0
    for name, before in seen.before.items():
        touched = sum(step[name] != 0 for step in seen.steps) > 0
        moved += int((touched & (seen.after[name] != before)).sum())
        reached += int(touched.sum())
    assert reached > 10_000
    return moved / reached


@pytest.mark.fault(33)
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_small_steps_are_kept_in_fp32_and_rounded_once_when_saved(
    precision: str,
    train_in: Callable[[str], Watched],
    stored_in_bf16: Path,
    tmp_path: Path,
    observed: Observed,
) -> None:
    from safetensors.torch import load_file

    seen = train_in(precision)
    for weights in (seen.before, seen.after, *seen.steps):
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    share = share_moved(seen)
    assert share >= 0.99
    saved = load_file(tmp_path / "runs" / precision / "model" / "model.safetensors")
    stored = load_file(stored_in_bf16 / "model.safetensors")
    assert saved.keys() == stored.keys()
    for name, tensor in saved.items():
        assert tensor.equal(seen.after[name].bfloat16()), name
        assert stored[name].float().equal(seen.before[name]), name
    observed(f"{precision}: {share:.1%} of the weights with a gradient moved")


@pytest.mark.fault(33)
def test_pure_bf16_loses_small_steps_and_says_so(
    train_in: Callable[[str], Watched], capsys: Capture, observed: Observed
) -> None:
    """So it is never chosen by auto."""
    seen = train_in("pure-bf16")
    assert {tensor.dtype for tensor in seen.after.values()} == {torch.bfloat16}
    assert "at small learning rates most updates round to zero" in capsys.readouterr().err
    share = share_moved(seen)
    assert share < 0.5
    observed(f"pure-bf16, asked for and warned of: {share:.1%}")
