"""Callbacks between steps: progress, records, validation, saving, stopping, trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from ftcli.config.recipe import Training
from ftcli.console import Meter
from ftcli.data.order import StepSampler
from ftcli.errors import MachineError
from ftcli.runs.signals import StopSignals
from ftcli.training.plan.decide import SAVE_SHARE
from ftcli.training.plan.plan import Plan

if TYPE_CHECKING:
    from ftcli.training.trainer import FtcliTrainer

# Keys of Trainer's logs that metrics.jsonl has.
RECORDED = {"loss", "learning_rate", "grad_norm"}


class BeforeFirstStep(TrainerCallback):
    """Calls `work` once the trainer is set up or resumed, before the first step."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._work()


class ScheduleCallback(TrainerCallback):
    """Decides after each step whether to validate, save or stop, and keeps the run's records."""

    def __init__(
        self, trainer: FtcliTrainer, training: Training, plan: Plan, stops: StopSignals
    ) -> None:
        self.validates = trainer.data.validation is not None
        self.plan = plan
        self.records = trainer.records
        self.stops = stops
        self._trainer = trainer
        self._patience = training.early_stopping_patience
        self._saves_as_asked = training.save_steps != "auto"
        self.latest_eval_loss: float | None = None
        self._tokens = 0
        self._training_seconds = 0.0
        self._started = self._step_started = self._saved_at = time.monotonic()
        self.meter: Meter | None = None

    def is_due(self, step: int) -> bool:
        """Whether to validate after this step."""
        every = self.plan.training.eval_steps
        return self.validates and (step >= self.plan.steps or step % every == 0)

    def is_over(self, step: int) -> bool:
        """Whether a run has nothing left to train or validate after this step."""
        if self.is_due(step) and not self.records.has_eval(step):
            return False
        return step >= self.plan.steps or self._has_lost_patience()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._step_started = self._saved_at = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, last = state.global_step, state.global_step >= self.plan.steps
        seconds = time.monotonic() - self._step_started
        tokens = self._trainer.data.sampler.tokens(step - 1)
        self._training_seconds += seconds
        self._tokens += tokens
        self.records.add_time(step, tokens, seconds)
        stopping = self.stops.number is not None
        # A validation that a stop skips is done when the run resumes.
        control.should_evaluate = self.is_due(step) and not stopping
        control.should_save = stopping or last or self._is_worth_saving(step)
        control.should_training_stop = stopping or last

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **_: Any,
    ) -> None:
        if "loss" in logs:
            # In fp16 a gradient may overflow, which no number of JSON says; the step is skipped.
            kept = {k: v for k, v in logs.items() if k in RECORDED and math.isfinite(v)}
            self.records.add({"step": state.global_step, **kept})
            if self.meter is not None:
                self.meter.update(state.global_step, self._figures(logs["loss"]))
        self._step_started = time.monotonic()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        loss = self.latest_eval_loss = metrics["eval_loss"]
        self.records.add({"step": state.global_step, "eval_loss": loss})
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, state.best_global_step = loss, state.global_step
            control.should_save = True
        elif self._has_lost_patience():
            control.should_training_stop = control.should_save = True
        self._step_started = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.stops.number is not None:
            control.should_training_stop = True
        self._step_started = self._saved_at = time.monotonic()

    def _is_worth_saving(self, step: int) -> bool:
        """Whether to save after this step; by default only if saving takes little of the time."""
        if step % self.plan.training.save_steps:
            return False
        since = time.monotonic() - self._saved_at
        return self._saves_as_asked or self._trainer.checkpoint_seconds <= SAVE_SHARE * since

    def _has_lost_patience(self) -> bool:
        patience = self._patience
        return patience is not None and self.records.validations_without_gain() >= patience

    def tokens_per_second(self) -> float:
        """Tokens without padding, by the seconds of the steps."""
        return self._tokens / self._training_seconds if self._training_seconds else 0.0

    def seconds(self) -> float:
        """Wall time since this process began to train, including validations and saves."""
        return time.monotonic() - self._started

    def _figures(self, loss: float) -> str:
        validation = f"  val {self.latest_eval_loss:.3f}" if self.latest_eval_loss else ""
        return f"loss {loss:.3f}{validation}  {self.tokens_per_second():,.0f} tok/s"


NAMES = {
    TensorBoardCallback: "tensorboard",
    WandbCallback: "wandb",
    MLflowCallback: "mlflow",
    TrackioCallback: "trackio",
}
# Keys that Trainer logs at the end: they count one process only, or are not counted at all.
NOT_LOGGED = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
}


def init_trackers(
    callbacks: Iterable[TrainerCallback], logs: Path, step: int, sampler: StepSampler
) -> None:
    """Set up the trackers of a run that starts or resumes after `step`.

    TensorBoard writes into `logs`, unless TENSORBOARD_LOGGING_DIR is set, and deletes the steps
    that are done again. Epochs are counted by rows, because Trainer counts the whole run as one.
    A tracker that fails to start raises MachineError (`tracker`).
    """
    for callback in callbacks:
        name = NAMES.get(type(callback))
        if name is None:
            continue
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or str(logs)
            again = {"purge_step": step + 1} if step else {}
            callback._SummaryWriter = partial(callback._SummaryWriter, **again)
        callback.on_train_begin = _explaining_errors(name, callback.on_train_begin)
        callback.on_log = _with_our_epochs(sampler, callback.on_log)


def _with_our_epochs(sampler: StepSampler, log: Callable[..., Any]) -> Callable[..., Any]:
    def on_log(
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **named: Any,
    ) -> Any:
        kept = {key: value for key, value in (logs or {}).items() if key not in NOT_LOGGED}
        if "epoch" in kept:
            kept["epoch"] = sampler.epochs_done(state.global_step)
        if kept.keys() - {"epoch"}:
            log(args, state, control, logs=kept, **named)

    return on_log


def _explaining_errors(name: str, begin: Callable[..., Any]) -> Callable[..., Any]:
    def on_train_begin(*arguments: Any, **named: Any) -> Any:
        try:
            return begin(*arguments, **named)
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise MachineError(
                "tracker",
                f"training.report_to: {name} failed to start: {reason}; set it up, or remove it "
                "from the list",
            ) from error

    return on_train_begin
