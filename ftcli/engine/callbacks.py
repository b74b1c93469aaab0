"""What happens between the steps of a training: progress, records, validation, saving, stopping."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftcli.artifacts import RunFolder, append_json, write_text
from ftcli.console import Meter, Reporter
from ftcli.plan import Plan
from ftcli.recipe import Training

# What of Trainer's logs goes into metrics.jsonl.
RECORDED = {"loss", "learning_rate", "grad_norm"}


class Course(TrainerCallback):
    """Decides after each step whether to validate, save or stop, and keeps the run's records."""

    def __init__(
        self,
        run: RunFolder,
        training: Training,
        plan: Plan,
        tokens_of_steps: Sequence[int],
        validate: Callable[[], float] | None,
    ) -> None:
        self.run = run
        self.validate = validate
        self.patience = training.early_stopping_patience
        self.plan = plan
        self.first_eval_loss: float | None = None
        self.signal_number: int | None = None
        self.losses: list[float] = []
        self.latest_eval_loss: float | None = None
        self._tokens_of_steps = tokens_of_steps
        self._worse = 0
        self._tokens = 0
        self._training_seconds = 0.0
        self._meter: Meter | None = None

    def begin(self, meter: Meter, *, resumed: bool) -> None:
        """Measure the starting point, or take up the records of a stopped run."""
        self._meter = meter
        self._started = self._step_started = time.monotonic()
        if resumed:
            losses = [r["eval_loss"] for r in _read_records(self.run) if "eval_loss" in r]
            self.first_eval_loss = losses[0] if losses else None
            self._worse = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        elif self.validate is not None:
            self.first_eval_loss = self.validate()
            self._record({"step": 0, "eval_loss": self.first_eval_loss})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        _forget_records_after(self.run, state.global_step)
        self._step_started = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, last = state.global_step, state.global_step >= self.plan.steps.value
        self._training_seconds += time.monotonic() - self._step_started
        self._tokens += self._tokens_of_steps[step - 1]
        stopping = self.signal_number is not None
        due = last or step % self.plan.eval_every.value == 0
        measured = last or not stopping
        control.should_evaluate = due and self.validate is not None and measured
        control.should_save = stopping or last or step % self.plan.save_every.value == 0
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
            self.losses.append(logs["loss"])
            kept = {k: v for k, v in logs.items() if k in RECORDED}
            self._record({"step": state.global_step, **kept})
            if self._meter is not None:
                self._meter.update(state.global_step, self._figures(logs["loss"]))
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
        self._record({"step": state.global_step, "eval_loss": loss})
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, state.best_global_step = loss, state.global_step
            self._worse = 0
            control.should_save = True
        else:
            self._worse += 1
            if self.patience is not None and self._worse >= self.patience:
                control.should_training_stop = control.should_save = True
        self._step_started = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._step_started = time.monotonic()

    def train_loss(self) -> float | None:
        """Mean over the last tenth of this sitting's steps: one alone is noise; none: no step."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail) if tail else None

    def tokens_per_second(self) -> float:
        """Real tokens, without padding, by the time the steps took."""
        return self._tokens / self._training_seconds if self._training_seconds else 0.0

    def seconds(self) -> float:
        """Wall time since the first step of this sitting, validations and saves included."""
        return time.monotonic() - self._started

    def _figures(self, loss: float) -> str:
        validation = f"  val {self.latest_eval_loss:.3f}" if self.latest_eval_loss else ""
        return f"loss {loss:.3f}{validation}  {self.tokens_per_second():,.0f} tok/s"

    def _record(self, values: dict[str, object]) -> None:
        append_json(self.run.metrics, values)


@contextmanager
def stop_signals(course: Course, reporter: Reporter) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the run after its step; a second one ends it at once."""

    def stop(number: int, _: FrameType | None) -> None:
        course.signal_number = number
        signal.signal(number, signal.SIG_DFL)
        reporter.note("stopping after this step (once more: at once, back to the last checkpoint)")

    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _read_records(run: RunFolder) -> list[dict[str, Any]]:
    if not run.metrics.is_file():
        return []
    with run.metrics.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _forget_records_after(run: RunFolder, step: int) -> None:
    """Steps after the checkpoint are done again, so their lines go."""
    records = _read_records(run)
    kept = [json.dumps(record) + "\n" for record in records if record["step"] <= step]
    if len(kept) < len(records):
        write_text(run.metrics, "".join(kept))
