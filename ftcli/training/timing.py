"""How fast a training's steps are here: a few are taken and thrown away."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftcli.models.device import uses_gpu
from ftcli.training.building import build_trainer
from ftcli.training.job import TrainJob

# The first steps fill caches and choose kernels, and are not timed.
UNTIMED_STEPS = 2
TIMED_STEPS = 4


@dataclass(frozen=True)
class Speed:
    """Real tokens, without padding, and the seconds that the timed steps took."""

    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class StepClock(TrainerCallback):
    """Counts the seconds from the end of the last untimed step on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if uses_gpu():
            torch.cuda.synchronize()
        now = time.monotonic()
        if state.global_step == UNTIMED_STEPS:
            self._started = now
        self.seconds = now - self._started


def measure_speed(job: TrainJob) -> Speed:
    """Take a few steps of this training on the prepared rows, without a validation or a save."""
    plan = job.plan
    steps = UNTIMED_STEPS + TIMED_STEPS
    enough = steps * job.recipe.training.batch_size / job.dataset.trained_on.rows
    timed = {"steps": steps, "epochs": max(plan.epochs, enough), "warmup_steps": 0}
    short = plan.model_copy(update=timed)
    trainer = build_trainer(replace(job, plan=short))
    clock = StepClock()
    trainer.add_callback(clock)
    trainer.train()
    tokens = sum(trainer.data.windows.tokens(step) for step in range(UNTIMED_STEPS, steps))
    return Speed(tokens, clock.seconds)
