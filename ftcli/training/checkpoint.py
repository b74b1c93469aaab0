"""Save and load a step: weights, optimizer, schedule, random states; nothing NaN or infinite."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerState

from ftcli.errors import FtcliError
from ftcli.models.adapters import save_resumable
from ftcli.models.device import uses_gpu
from ftcli.runs.atomic import atomic_directory, write_text
from ftcli.runs.checkpoints import Position, write_manifest
from ftcli.runs.metrics_log import Records
from ftcli.training.l2_sp import L2SP


class NotFiniteError(FtcliError):
    """The step failed; the weights are those of the step before."""

    def __init__(self, message: str) -> None:
        super().__init__("loss_not_finite", message)


def require_finite_weights(model: PreTrainedModel, step: int) -> None:
    """Raise NotFiniteError where a trained weight is NaN or infinite: nothing of it is saved."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise NotFiniteError(
                f"{name} holds NaN or infinity after step {step}; train with a lower "
                "training.learning_rate, beside this run (--fresh)"
            )


# By the names under which Trainer reads them back (transformers 5.24, Trainer._load_rng_state).
RandomState = dict[str, Any]


def random_state() -> RandomState:
    """What the generators would draw next."""
    state: RandomState = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if uses_gpu():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def restore_random_state(state: RandomState) -> None:
    """Let the generators draw again what they drew from then on."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state and uses_gpu():
        torch.cuda.random.set_rng_state(state["cuda"])


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
    l2_sp: L2SP | None


def save_checkpoint(trainer: Trainable, position: Position, folder: Path) -> None:
    """Weights, optimizer, schedule, random states and records of the current step.

    Raises NotFiniteError, and OSError or what the libraries make of it (`disk.is_full`).
    """
    require_finite_weights(trainer.model, position.step)
    with atomic_directory(folder) as temporary:
        save_resumable(trainer.model, temporary)
        if trainer.l2_sp is not None:
            trainer.l2_sp.save(temporary)
        _save(trainer.optimizer.state_dict(), temporary / OPTIMIZER)
        _save(trainer.lr_scheduler.state_dict(), temporary / SCHEDULER)
        if trainer.accelerator.scaler is not None:
            _save(trainer.accelerator.scaler.state_dict(), temporary / SCALER)
        _save(random_state(), temporary / RANDOM)
        trainer.state.save_to_json(str(temporary / STATE))
        write_text(temporary / RECORDS, trainer.records.text())
        write_manifest(temporary, position)


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
