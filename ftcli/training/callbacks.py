"""What happens between the steps of a training: progress, records, validation, saving, stopping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftcli.config.recipe import Training
from ftcli.console import Meter
from ftcli.data.order import Windows
from ftcli.runs.metrics_log import Records
from ftcli.runs.signals import StopSignals
from ftcli.training.plan.decide import SAVE_SHARE
from ftcli.training.plan.plan import Plan

# What of Trainer's logs goes into metrics.jsonl.
RECORDED = {"loss", "learning_rate", "grad_norm"}


class BeforeFirstStep(TrainerCallback):
    """Does something once, when everything is in its place and before the first step."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._work()


class ScheduleCallback(TrainerCallback):
    """Decides after each step whether to validate, save or stop, and keeps the run's records."""

    def __init__(
        self,
        training: Training,
        plan: Plan,
        windows: Windows,
        records: Records,
        stops: StopSignals,
        *,
        validates: bool,
        save_seconds: Callable[[], float],
    ) -> None:
        """`save_seconds`: what a checkpoint takes, as far as is known."""
        self.validates = validates
        self.patience = training.early_stopping_patience
        self.plan = plan
        self.records = records
        self.stops = stops
        self.save_seconds = save_seconds
        self._saves_as_asked = training.save_steps != "auto"
        self.latest_eval_loss: float | None = None
        self._windows = windows
        self._tokens = 0
        self._training_seconds = 0.0
        self._started = self._step_started = self._saved_at = time.monotonic()
        self.meter: Meter | None = None

    def is_due(self, step: int) -> bool:
        """Whether the rows are to be validated after this step."""
        every = self.plan.training.eval_steps
        return self.validates and (step >= self.plan.steps or step % every == 0)

    def is_over(self, step: int) -> bool:
        """Whether a run that has come this far has nothing left to train or to validate."""
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
        seconds, tokens = time.monotonic() - self._step_started, self._windows.tokens(step - 1)
        self._training_seconds += seconds
        self._tokens += tokens
        self.records.add_time(step, tokens, seconds)
        stopping = self.stops.number is not None
        # What a stopped run leaves out it makes up for when it goes on.
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
            kept = {k: v for k, v in logs.items() if k in RECORDED}
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
        """Whether this is a step to save at, and what a kill would lose is worth the time."""
        if step % self.plan.training.save_steps:
            return False
        since = time.monotonic() - self._saved_at
        return self._saves_as_asked or self.save_seconds() <= SAVE_SHARE * since

    def _has_lost_patience(self) -> bool:
        patience = self.patience
        return patience is not None and self.records.validations_without_gain() >= patience

    def tokens_per_second(self) -> float:
        """Real tokens, without padding, by the time the steps took."""
        return self._tokens / self._training_seconds if self._training_seconds else 0.0

    def seconds(self) -> float:
        """Wall time since the beginning of this sitting, validations and saves included."""
        return time.monotonic() - self._started

    def _figures(self, loss: float) -> str:
        validation = f"  val {self.latest_eval_loss:.3f}" if self.latest_eval_loss else ""
        return f"loss {loss:.3f}{validation}  {self.tokens_per_second():,.0f} tok/s"
