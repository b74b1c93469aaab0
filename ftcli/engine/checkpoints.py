"""Save a step whole or not at all; keep the newest and the best."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, TrainerState

from ftcli.artifacts import RunFolder, whole_folder
from ftcli.engine.adapters import save_resumable

STATE_FILE = "trainer_state.json"


class Trainable(Protocol):
    """What a checkpoint takes from a trainer."""

    model: PreTrainedModel
    state: TrainerState

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None: ...
    def _save_scaler(self, output_dir: str) -> None: ...
    def _save_rng_state(self, output_dir: str) -> None: ...


def save_checkpoint(trainer: Trainable, run: RunFolder) -> Path:
    """Weights, optimizer, schedule and random states of the current step."""
    folder = run.checkpoint(trainer.state.global_step)
    with whole_folder(folder) as temporary:
        save_resumable(trainer.model, temporary)
        trainer._save_optimizer_and_scheduler(str(temporary))
        trainer._save_scaler(str(temporary))
        trainer._save_rng_state(str(temporary))
        trainer.state.save_to_json(str(temporary / STATE_FILE))
    return folder


def rotate(run: RunFolder, keep: int, best_step: int | None) -> None:
    """Delete checkpoints that are neither among the `keep` newest nor the best."""
    for step in run.steps_saved()[:-keep]:
        if step != best_step:
            shutil.rmtree(run.checkpoint(step))


def newest(run: RunFolder) -> Path | None:
    """The checkpoint to resume from."""
    steps = run.steps_saved()
    return run.checkpoint(steps[-1]) if steps else None
