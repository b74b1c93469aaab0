"""training.report_to: where TensorBoard writes, and a tracker that cannot begin, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from ftcli.data.order import Windows
from ftcli.errors import MachineError

NAMES = {
    TensorBoardCallback: "tensorboard",
    WandbCallback: "wandb",
    MLflowCallback: "mlflow",
    TrackioCallback: "trackio",
}
# What Trainer adds at the end: of this sitting alone, and of operations that nobody counts.
NOT_TOLD = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
}


def settle_trackers(
    callbacks: Iterable[TrainerCallback], logs: Path, step: int, windows: Windows
) -> None:
    """Before a sitting that begins behind `step`: TensorBoard's events go into `logs` itself, where
    a run that goes on takes back the steps that it does again.

    Trackers are told the epochs by rows seen, since to Trainer the whole run is one epoch.

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
        callback.on_log = _as_it_is(windows, callback.on_log)


def _as_it_is(windows: Windows, tell: Callable[..., Any]) -> Callable[..., Any]:
    def on_log(
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **named: Any,
    ) -> Any:
        kept = {key: value for key, value in (logs or {}).items() if key not in NOT_TOLD}
        if "epoch" in kept:
            kept["epoch"] = windows.epochs_done(state.global_step)
        if kept.keys() - {"epoch"}:
            tell(args, state, control, logs=kept, **named)

    return on_log


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
