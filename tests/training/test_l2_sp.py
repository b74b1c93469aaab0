"""training.l2_sp: weights are pulled to their start, in addition to the optimizer's step."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ftcli.training.l2_sp import L2SP, STARTS
from tests.commands.test_training import stop_at, train
from tests.conftest import Patch, Recipes
from tests.tiers import tiers

RATE, STRENGTH = 0.05, 3.0
DATA = {"train": "rows.jsonl", "validation": 8, "test": 8, "max_length": 256}
FP32 = {"epochs": 1, "batch_size": 4, "eval_steps": 4, "learning_rate": "1e-3", "precision": "fp32"}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora", "rank": 4},
    "dora": {"mode": "lora", "rank": 4, "dora": True},
    "modules": {"mode": "lora", "rank": 4, "modules_to_save": ["lm_head"]},
    "qlora": {"mode": "qlora", "rank": 4},
    "bottleneck": {"mode": "bottleneck", "bottleneck": 8},
    "prefix-tuning": {"mode": "prefix-tuning", "virtual_tokens": 4},
    "projection": {"mode": "prefix-tuning", "virtual_tokens": 4, "projection": True},
    "prompt-tuning": {"mode": "prompt-tuning", "virtual_tokens": 4},
}


def l2_sp(strength: float = STRENGTH) -> dict[str, Any]:
    return {"l2_sp": strength}


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 5)


def data_loss(model: nn.Module, step: int) -> Tensor:
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
    loss: Tensor = model(inputs).square().sum()
    return loss


# The arithmetic


def test_with_sgd_it_is_the_penalty_of_the_paper() -> None:
    """strength / 2 · ‖w - start‖² in the loss, whose gradient is strength · (w - start)."""
    ours, theirs = layer(), layer()
    start = deepcopy(theirs)
    sgd = torch.optim.SGD(ours.parameters(), RATE)
    L2SP(ours, STRENGTH, None).attach(sgd, ours)
    coupled = torch.optim.SGD(theirs.parameters(), RATE)
    for step in range(20):
        sgd.zero_grad()
        data_loss(ours, step).backward()
        sgd.step()
        coupled.zero_grad()
        moved = (
            (w - s.detach()).square().sum()
            for w, s in zip(theirs.parameters(), start.parameters(), strict=True)
        )
        (data_loss(theirs, step) + STRENGTH / 2 * sum(moved)).backward()
        coupled.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_towards_zero_it_is_adamw_s_own_weight_decay() -> None:
    """The same place in the step, and the same share of the way."""
    ours, theirs = layer(), layer()
    with torch.no_grad():
        weights = [w.clone() for w in ours.parameters()]
        for weight in ours.parameters():
            weight.zero_()
    pull = L2SP(ours, STRENGTH, None)
    with torch.no_grad():
        for weight, value in zip(ours.parameters(), weights, strict=True):
            weight.copy_(value)
    optimizer = torch.optim.AdamW(ours.parameters(), RATE, weight_decay=0)
    pull.attach(optimizer, ours)
    decaying = torch.optim.AdamW(theirs.parameters(), RATE, weight_decay=STRENGTH)
    for step in range(20):
        for model, each in ((ours, optimizer), (theirs, decaying)):
            each.zero_grad()
            data_loss(model, step).backward()
            each.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_pull_follows_the_learning_rate_of_the_step() -> None:
    model = layer()
    start = [w.detach().clone() for w in model.parameters()]
    pull = L2SP(model, STRENGTH, None)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    pull.attach(optimizer, model)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1
    for rate in (0.1, 0.05, 0.0):
        before = [w.detach() - s for w, s in zip(model.parameters(), start, strict=True)]
        optimizer.param_groups[0]["lr"] = rate
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        for weight, begun, away in zip(model.parameters(), start, before, strict=True):
            torch.testing.assert_close(weight.detach() - begun, away * (1 - rate * STRENGTH))


@pytest.mark.parametrize("kind", ["sgd", "fused adamw"])
def test_a_step_that_fp16_skips_pulls_nothing(kind: str) -> None:
    model = layer()
    pull = L2SP(model, STRENGTH, None)
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), RATE)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    pull.attach(optimizer, model)
    scaler = torch.amp.GradScaler("cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1
    for overflows in (True, False):
        before = [w.detach().clone() for w in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(data_loss(model, 0) * (float("inf") if overflows else 0.0)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        same = [torch.equal(w, b) for w, b in zip(model.parameters(), before, strict=True)]
        assert all(same) if overflows else not any(same)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_starting_weights_are_kept_as_they_are_stored_where_that_is_exact(
    stored: torch.dtype, monkeypatch: Patch
) -> None:
    from ftcli.training import l2_sp as module

    monkeypatch.setattr(module, "L2_SP_PIECE_ELEMENTS", 7)  # pieces of one row
    model = layer().to(stored).float()
    with torch.no_grad():
        model.bias += 1e-6
    wide, narrow = deepcopy(model), deepcopy(model)
    kept = L2SP(narrow, STRENGTH, stored)
    assert kept.bytes == 2 * 30 + 4 * 5, "16 bits cannot represent this bias"
    for each, pull in ((wide, L2SP(wide, STRENGTH, torch.float32)), (narrow, kept)):
        optimizer = torch.optim.AdamW(each.parameters(), RATE)
        pull.attach(optimizer, each)
        for step in range(5):
            optimizer.zero_grad()
            data_loss(each, step).backward()
            optimizer.step()
    for one, other in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(one, other)


# Training


Weights = dict[str, Tensor]


def weights(folder: Path) -> Weights:
    kind = "model" if (folder / "model").is_dir() else "adapter"
    (file,) = (folder / kind).glob("*model.safetensors")
    return load_file(file)


def distance(one: Weights, other: Weights) -> float:
    """Largest difference between two weights."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("mode", tiers(["full", "lora"], "lora"))
def test_zero_is_training_without_it(
    mode: str, write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    made = []
    original = L2SP.__init__
    monkeypatch.setattr(L2SP, "__init__", lambda *a: made.append(1) or original(*a))
    for name, more in (("without", {}), ("zero", l2_sp(0)), ("pulled", l2_sp())):
        recipe = write_recipe(name, method=METHODS[mode], training={**FP32, **more})
        assert train(recipe) == 0
        assert bool(made) == (name == "pulled"), "without it no weight is copied"
    runs = tmp_path / "runs"
    found = {name: weights(runs / name) for name in ("without", "zero", "pulled")}
    assert distance(found["without"], found["zero"]) == 0
    assert distance(found["without"], found["pulled"]) > 0


def test_a_strong_pull_keeps_weights_near_their_start(
    write_recipe: Recipes, tmp_path: Path, tiny_model: Path
) -> None:
    start = load_file(tiny_model / "model.safetensors")
    away = {}
    for strength in (0, 100, 800):
        name = f"by-{strength}"
        training = {**FP32, "epochs": 4, "lr_scheduler": "constant", **l2_sp(strength)}
        assert train(write_recipe(name, method=METHODS["full"], training=training)) == 0
        away[strength] = distance(weights(tmp_path / "runs" / name), start)
    assert away[800] < away[100] < away[0]
    # Steps of AdamW are about as long as the learning rate: the pull is as strong at 1 / strength.
    assert away[800] < 2 / 800 and away[100] < 2 / 100


@pytest.mark.parametrize(
    "name",
    ["lora"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("full", "modules", "projection", "qlora")
    ],
)
def test_a_stopped_run_resumes_to_the_same_weights(
    name: str, write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    training = {**FP32, "precision": "auto", "micro_batch_size": 2, **l2_sp(100)}
    whole = write_recipe("whole", method=METHODS[name], training=training)
    assert train(whole) == 0
    stopped = write_recipe("stopped", method=METHODS[name], training=training)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(stopped) == 130
    runs = tmp_path / "runs"
    kept = list((runs / "stopped" / "checkpoints").glob(f"step-*/{STARTS}"))
    assert bool(kept) == (name != "full"), "the base itself is the start of a full training"
    if name != "full":
        # As drawn by another version or device.
        original = L2SP.__init__

        def elsewhere(self: L2SP, *arguments: Any) -> None:
            original(self, *arguments)
            for start in self._starts.values():
                start.add_(1)

        monkeypatch.setattr(L2SP, "__init__", elsewhere)
    assert train(stopped) == 0
    assert distance(weights(runs / "stopped"), weights(runs / "whole")) == 0


@pytest.mark.slow
def test_a_further_run_is_pulled_to_its_parent_s_weights(
    write_recipe: Recipes, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for mode in ("lora", "full"):
        first = write_recipe(f"first-{mode}", method=METHODS[mode], training=FP32)
        assert train(first) == 0
        parent = runs / f"first-{mode}"
        away = {}
        for strength in (0, 900):
            name = f"{mode}-{strength}"
            training = {**FP32, "lr_scheduler": "constant", **l2_sp(strength)}
            further = write_recipe(name, method=METHODS[mode], training=training)
            assert train(further, "--from", str(parent)) == 0
            away[strength] = distance(weights(runs / name), weights(parent))
        assert away[900] < away[0] / 2


def test_micro_batches_and_a_repeated_step_change_nothing(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    from ftcli.models import loss as losses

    pulls: list[int] = []
    original = L2SP._pull
    monkeypatch.setattr(L2SP, "_pull", lambda self, *a: pulls.append(1) or original(self, *a))
    for rows in (1, 4):
        training = {**FP32, "micro_batch_size": rows, **l2_sp(100)}
        recipe = write_recipe(f"by-{rows}", method=METHODS["full"], training=training)
        assert train(recipe) == 0
        assert len(pulls) == 8, "one per step, however many micro-batches"
        pulls.clear()
    runs = tmp_path / "runs"
    assert distance(weights(runs / "by-1"), weights(runs / "by-4")) < 1e-4
    loss, calls = losses.summed_loss, []

    def short_of_memory(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError
        return loss(*arguments)

    monkeypatch.setattr(losses, "summed_loss", short_of_memory)
    training = {**FP32, "micro_batch_size": 4, **l2_sp(100)}
    assert train(write_recipe("again", method=METHODS["full"], training=training)) == 0
    assert len(pulls) == 8
    assert distance(weights(runs / "again"), weights(runs / "by-4")) < 1e-4
