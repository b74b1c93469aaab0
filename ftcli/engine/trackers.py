"""training.report_to: where TensorBoard writes, and a tracker that cannot begin, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from ftcli.errors import MachineError

NAMES = {
    TensorBoardCallback: "tensorboard",
    WandbCallback: "wandb",
    MLflowCallback: "mlflow",
    TrackioCallback: "trackio",
}


def settle_trackers(callbacks: Iterable[TrainerCallback], logs: Path, step: int) -> None:
    """Before a sitting that begins behind `step`: TensorBoard's events go into `logs` itself, where
    a run that goes on takes back the steps that it does again.

    TENSORBOARD_LOGGING_DIR goes before. Each tracker that cannot begin raises MachineError
    (`tracker`).
    """
    for callback in callbacks:
        name = NAMES.get(type(callback))
        if name is None:
            continue
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or str(logs)
            again = {"purge_step": step + 1} if step else {}
            callback._SummaryWriter = partial(callback._SummaryWriter, **again)
        callback.on_train_begin = _in_words(name, callback.on_train_begin)


def _in_words(name: str, begin: Callable[..., Any]) -> Callable[..., Any]:
    def on_train_begin(*arguments: Any, **named: Any) -> Any:
        try:
            return begin(*arguments, **named)
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise MachineError(
                "tracker",
                f"training.report_to: {name} cannot begin: {reason}; set it up, or take it out of "
                "the list",
            ) from error

    return on_train_begin
