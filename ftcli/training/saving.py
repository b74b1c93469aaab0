"""Save a step: all that a training goes on from, and a manifest that proves it whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, TrainerState

from ftcli.models.adapters import save_resumable
from ftcli.runs.atomic import whole_folder, write_text
from ftcli.runs.checkpoints import Position, seal
from ftcli.runs.metrics_log import Records
from ftcli.training.finite import require_finite_weights
from ftcli.training.l2_sp import Hold
from ftcli.training.randomness import random_state

# By the names under which Trainer reads them back (transformers 5.24, trainer.py).
STATE, OPTIMIZER, SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"
SCALER, RANDOM = "scaler.pt", "rng_state.pth"
RECORDS = "records.jsonl"
# Of bitsandbytes' states, those that its paged optimizers page.
PAGED_STATES = {"state1", "state2"}


class Trainable(Protocol):
    """What a checkpoint takes from a trainer."""

    model: PreTrainedModel
    state: TrainerState
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    records: Records
    hold: Hold | None


def save_checkpoint(trainer: Trainable, position: Position, folder: Path) -> None:
    """Weights, optimizer, schedule, random states and records of the current step.

    Raises NotFiniteError, and OSError or what the libraries make of it (`disk.is_full`).
    """
    require_finite_weights(trainer.model, position.step)
    with whole_folder(folder) as temporary:
        save_resumable(trainer.model, temporary)
        if trainer.hold is not None:
            trainer.hold.save(temporary)
        _save(trainer.optimizer.state_dict(), temporary / OPTIMIZER)
        _save(trainer.lr_scheduler.state_dict(), temporary / SCHEDULER)
        if trainer.accelerator.scaler is not None:
            _save(trainer.accelerator.scaler.state_dict(), temporary / SCALER)
        _save(random_state(), temporary / RANDOM)
        trainer.state.save_to_json(str(temporary / STATE))
        write_text(temporary / RECORDS, trainer.records.text())
        seal(temporary, position)


def _save(state: dict[str, Any], file: Path) -> None:
    # Through Python's file, an error of the disk keeps its name; torch's own says nothing of it.
    with file.open("wb") as stream:
        torch.save(state, stream)


def optimizer_bytes(optimizer: Any) -> int:
    """What the optimizer's states take on disk; 0 before the first step."""
    # Tensors with one storage, as bitsandbytes' tables of 8-bit values, are saved once.
    sizes = {
        tensor.untyped_storage().data_ptr(): tensor.nbytes
        for tensor in _tensors(optimizer.state_dict()["state"])
    }
    return sum(sizes.values())


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    """All tensors of an optimizer's state; bitsandbytes (0.50) wraps its own once more."""
    if torch.is_tensor(state):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)


def page_states(optimizer: Any) -> None:
    """Put a paged optimizer's states back into paged memory after they were loaded.

    bitsandbytes (0.50, Optimizer8bit.load_state_dict) leaves them in the GPU's own, where the plan
    has no room for them.
    """
    bare = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not getattr(bare, "is_paged", False):
        return
    for weight, state in bare.state.items():
        for name in PAGED_STATES & state.keys():
            place = bare.get_state_buffer(weight, dtype=state[name].dtype)
            if getattr(place, "is_paged", False):  # those of small weights never are
                state[name] = place.copy_(state[name])
