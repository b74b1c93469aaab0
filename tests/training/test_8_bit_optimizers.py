"""bitsandbytes' optimizers: their states are counted, and resumed as what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit
from bitsandbytes.optim.optimizer import Optimizer2State, Optimizer8bit

from ftcli.cli import run
from ftcli.training import building
from ftcli.training.checkpoint import optimizer_bytes
from tests.commands.test_training import stop_at
from tests.conftest import Patch, Recipes
from tests.faults.moments import weights_of

# Of a weight whose states are paged here; on a GPU it has 100,000.
NUMBERS = 4096


def test_states_in_8_bits_are_counted(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.ones(1024, 64)) for _ in range(2)]
    optimizer = AdamW8bit(weights)
    assert optimizer_bytes(optimizer) == 0
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    saved = (tmp_path / "optimizer.pt").stat().st_size
    assert 0.95 * saved < optimizer_bytes(optimizer) < saved


@pytest.fixture
def paged_on_a_cpu(monkeypatch: Patch) -> None:
    """bitsandbytes pages states as on a GPU, in memory that is ordinary here."""

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        found = torch.full(shape, 77, dtype=dtype)
        found.is_paged = True  # type: ignore[attr-defined]
        return found

    def get_state_buffer(self: Any, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if weight.numel() < NUMBERS:
            return torch.zeros_like(weight, dtype=dtype)
        found = functional.get_paged(*weight.shape, dtype=dtype, device=weight.device)
        return found.fill_(0)  # type: ignore[no-any-return]

    load = Optimizer8bit.load_state_dict

    def load_state_dict(self: Any, state_dict: Any, move_to_device: bool = True) -> None:
        """What moves to a GPU is another tensor there."""
        load(self, state_dict, move_to_device)
        for state in self.state.values():
            state |= {name: v.clone() for name, v in state.items() if torch.is_tensor(v)}

    monkeypatch.setattr(Optimizer8bit, "load_state_dict", load_state_dict)
    monkeypatch.setattr(functional, "get_paged", get_paged)
    monkeypatch.setattr(functional, "prefetch_tensor", lambda *_: None)
    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", get_state_buffer)
    monkeypatch.setitem(building.OPTIMIZERS, "adamw", "paged_adamw_8bit")


@pytest.mark.usefixtures("paged_on_a_cpu")
def test_paged_states_are_paged_again_when_a_run_resumes(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    training = {"epochs": 1, "batch_size": 4, "eval_steps": 4, "optimizer": "adamw"}
    recipes = {
        name: write_recipe(name, method={"mode": "full"}, training=training)
        for name in ("whole", "stopped")
    }
    assert run(["train", str(recipes["whole"])]) == 0
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert run(["train", str(recipes["stopped"])]) == 130
    paged: set[tuple[bool, bool]] = set()
    update = Optimizer2State.update_step

    def watched(self: Any, group: Any, weight: torch.Tensor, *places: int) -> None:
        large, state = weight.numel() >= NUMBERS, self.state[weight]
        paged.update((large, hasattr(state[name], "is_paged")) for name in ("state1", "state2"))
        update(self, group, weight, *places)

    monkeypatch.setattr(Optimizer2State, "update_step", watched)
    assert run(["train", str(recipes["stopped"])]) == 0
    assert paged == {(True, True), (False, False)}
    runs = tmp_path / "runs"
    assert weights_of(runs / "stopped") == weights_of(runs / "whole")
    manifest = json.loads((runs / "stopped" / "run.json").read_text())
    assert manifest["state"] == "finished"
