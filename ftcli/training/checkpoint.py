"""Save and load a step: weights (none NaN or infinite), optimizer, scheduler, random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerState

from ftcli.errors import FtcliError
from ftcli.models.adapters import save_resumable
from ftcli.models.device import uses_gpu
from ftcli.runs.atomic import atomic_directory, write_text
from ftcli.runs.checkpoints import Position, write_manifest
from ftcli.runs.metrics_log import Records
from ftcli.training.l2_sp import L2SP


class NotFiniteError(FtcliError):
    """A step failed before it changed any weight."""

    def __init__(self, message: str) -> None:
        super().__init__("loss_not_finite", message)


def require_finite_weights(model: PreTrainedModel, step: int) -> None:
    """Raise NotFiniteError if a trained weight is NaN or infinite."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise NotFiniteError(
                f"{name} is NaN or infinite after step {step}; train with a lower "
                "training.learning_rate, in a new folder (--fresh)"
            )


# By the names under which Trainer reads them back (transformers 5.24, Trainer._load_rng_state).
RandomState = dict[str, Any]


def random_state() -> RandomState:
    """States of all random generators."""
    state: RandomState = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if uses_gpu():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def restore_random_state(state: RandomState) -> None:
    """Set all random generators back to these states."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state and uses_gpu():
        torch.cuda.random.set_rng_state(state["cuda"])


# By the names under which Trainer reads them back (transformers 5.24, trainer.py).
STATE, OPTIMIZER, SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"
SCALER, RANDOM = "scaler.pt", "rng_state.pth"
RECORDS = "records.jsonl"
# States that bitsandbytes' paged optimizers page.
PAGED_STATES = {"state1", "state2"}


class Trainable(Protocol):
    """The parts of a trainer that a checkpoint saves."""

    model: PreTrainedModel
    state: TrainerState
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    records: Records
    l2_sp: L2SP | None


def save_checkpoint(trainer: Trainable, position: Position, folder: Path) -> None:
    """Save weights, optimizer, scheduler, random states and records of the current step.

    Raises NotFiniteError, OSError, and the libraries' own errors for a full disk (`is_full`).
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
    # torch's own file writer hides the system's error; Python's does not.
    with file.open("wb") as stream:
        torch.save(state, stream)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights of a fully trained model, by the names of its modules.

    Raises FtcliError (`checkpoint_broken`) if a weight is in none of the checkpoint's files.
    """
    own: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    loaded: set[int] = set()
    for file in sorted(folder.glob("*.safetensors")):
        weights = load_file(file)
        model.load_state_dict(weights, strict=False)
        loaded |= {id(own[name]) for name in weights if name in own}
    missing = [name for name, weight in own.items() if id(weight) not in loaded]
    if missing:
        raise FtcliError(
            "checkpoint_broken",
            f"{len(missing)} weights are in none of its files, {missing[0]} first; delete it, and "
            "resume from an earlier one",
            file=str(folder),
        )


def optimizer_bytes(optimizer: Any) -> int:
    """Bytes of the optimizer's states on disk; 0 before the first step."""
    # Tensors with one storage (bitsandbytes' tables of 8-bit values) are saved once.
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
    """Move a paged optimizer's loaded states back to paged memory.

    bitsandbytes (0.50, Optimizer8bit.load_state_dict) leaves them in the GPU's own memory, where
    the plan has no space for them.
    """
    bare = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not getattr(bare, "is_paged", False):
        return
    for weight, state in bare.state.items():
        for name in PAGED_STATES & state.keys():
            place = bare.get_state_buffer(weight, dtype=state[name].dtype)
            if getattr(place, "is_paged", False):  # states of small weights are not paged
                state[name] = place.copy_(state[name])
