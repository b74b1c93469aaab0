"""What a step takes: peak memory, the longest batch before the first step, seconds of a few steps.

On a card torch counts what its tensors and its allocator hold, weights included, as the estimate
does; on a CPU the system counts what the process takes, and what it had before is taken off."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from heapq import nlargest
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftcli.console import Reporter
from ftcli.kernels.attention import saved_probabilities
from ftcli.kernels.cpu import trim_heap
from ftcli.memory.activations import KEPT_KEYS, layers_bytes, rebuilt_layer_bytes
from ftcli.memory.hardware import Hardware
from ftcli.models.device import uses_gpu
from ftcli.models.load import shape_of
from ftcli.runs.atomic import TEMPORARY, delete_folder, folder_bytes, require_space
from ftcli.shell import gib
from ftcli.training.building import build_trainer
from ftcli.training.checkpoint import (
    optimizer_bytes,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from ftcli.training.collators import MicroBatch, PaddingCollator
from ftcli.training.job import TrainJob
from ftcli.training.plan.plan import Plan
from ftcli.training.trainer import FtcliTrainer

# proc(5): writing 5 to clear_refs sets VmHWM back to what is resident now (Linux 4.0).
CLEAR_REFS, RESET_PEAK = Path("/proc/self/clear_refs"), "5"


@dataclass(frozen=True)
class Peak:
    """Most bytes held at once; None where nothing was measured or the device has no such figure."""

    allocated_bytes: int | None = None
    """By tensors on the card: torch.cuda.max_memory_allocated."""
    reserved_bytes: int | None = None
    """By torch's allocator on the card: torch.cuda.max_memory_reserved."""
    resident_bytes: int | None = None
    """Of the machine's memory on a CPU, above what the process held before the model was there."""

    def maximum(self, other: Peak) -> Peak:
        """The greater of the two, figure by figure."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Peak(*(max((v for v in pair if v is not None), default=None) for pair in pairs))


class MemoryMeter:
    """Peaks between resets, and the peak of the whole process.

    Make it before the model is loaded.
    """

    def __init__(self, hardware: Hardware) -> None:
        self._on_card = hardware.kind == "cuda"
        self.settle()
        self._start_bytes = 0 if self._on_card else _resident_bytes()
        self._first_peak_bytes = self._process_peak_bytes = self._current_peak_bytes()
        self._resets = True

    def settle(self) -> None:
        """Give back what is held and not used: what loading leaves is no part of a step's peak."""
        if self._on_card:
            torch.cuda.empty_cache()
        else:
            trim_heap()

    def reset(self) -> None:
        """Forget the peak: the next one begins with what is held now."""
        self._process_peak_bytes = self.process_peak_bytes()
        if self._on_card:
            torch.cuda.reset_peak_memory_stats(0)
            return
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
        except OSError:  # another system, or forbidden: the peak is that of the whole process
            self._resets = False

    def peak(self) -> Peak:
        """The peak since the last reset."""
        found = self._current_peak_bytes()
        if self._on_card:
            return Peak(allocated_bytes=found, reserved_bytes=torch.cuda.max_memory_reserved(0))
        if not self._resets and found <= self._first_peak_bytes:
            return Peak()  # something before the training took more
        return Peak(resident_bytes=max(0, found - self._start_bytes))

    def process_peak_bytes(self) -> int:
        """Most that tensors took on the card, or this process of the machine's memory."""
        return max(self._process_peak_bytes, self._current_peak_bytes())

    def _current_peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(0) if self._on_card else _peak_resident_bytes()


class StepMemory(TrainerCallback):
    """Keeps the peak of the optimizer steps and that of the validations between them."""

    def __init__(self, meter: MemoryMeter) -> None:
        self.steps = Peak()
        self.validations = Peak()
        self._meter = meter

    def process_peak_bytes(self) -> int:
        """Most that the whole process took so far, loading included."""
        return self._meter.process_peak_bytes()

    def watch(self) -> None:
        """Begin to measure something that is no step."""
        self._meter.reset()

    def watched_bytes(self) -> int | None:
        """The peak since `watch`, where the device has such a figure; frees unused memory."""
        peak = self._meter.peak()
        self._meter.settle()
        return peak.allocated_bytes or peak.resident_bytes

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._meter.settle()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._meter.reset()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.steps = self.steps.maximum(self._meter.peak())
        self._meter.reset()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.validations = self.validations.maximum(self._meter.peak())


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _peak_resident_bytes() -> int:
    """Most that this process had resident: proc(5)'s VmHWM, elsewhere getrusage(2)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource  # of Unix alone

        # ru_maxrss is in KiB, but in bytes on macOS.
        unit = 1 if platform.system() == "Darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


WHERE = "the longest batch"
LAYER = re.compile(r"\.(\d+)\.")  # in the name of a weight
# At least so many, and an eighth of them: a model may mix kinds of layers.
LAST_LAYERS = 2
# Share of the peak that gradients may have: they are in memory from the start here.
LITTLE = 1 / 20


def run_preflight(
    trainer: FtcliTrainer, plan: Plan, memory: StepMemory, reporter: Reporter
) -> None:
    """Train on the largest micro-batch, validate and save, and undo all of it.

    Makes the micro-batch smaller where memory runs out. Raises torch's error where one row is too
    much, NotFiniteError, and MachineError (`disk_full`).
    """
    before = random_state()
    memory.watch()
    reserved = _room_for_states(trainer, plan)
    trainer.model.train()
    rows = trainer.oom_retry.run(
        lambda max_rows: _train_on_largest(trainer, plan, max_rows), trainer.zero_grad, WHERE
    )
    trainer.zero_grad()
    did = ["trained"]
    if trainer.data.validation is not None:
        trainer.score(trainer.data.validation.longest_first())
        did.append("validated")
    del reserved
    _save_and_delete(trainer, plan)
    restore_random_state(before)
    longest = max(trainer.data.train.lengths[row] for row in rows)
    peak = memory.watched_bytes()
    size = f": peak {gib(peak)}" if peak is not None else ""
    reporter.note(f"check  longest batch ({longest} tokens) {', '.join(did)} and saved{size}")


def _largest_micro_batch(trainer: FtcliTrainer, plan: Plan, max_rows: int) -> MicroBatch:
    """The micro-batch of at most so many rows with the largest estimated memory.

    Padded rows: of the step that holds the longest row. Packed rows: of all rows, as their tokens
    fill a micro-batch whatever their step.
    """
    sampler, lengths = trainer.data.sampler, trainer.data.train.lengths
    if isinstance(trainer.collator, PaddingCollator):
        place = max(range(len(sampler.order)), key=lambda i: lengths[sampler.order[i]])
        return _fullest(trainer, sampler[place // sampler.batch_size], max_rows)
    used = set(sampler.order)
    short = [row for row in used if lengths[row] <= KEPT_KEYS]
    longest = (
        nlargest(sampler.batch_size, rows, lengths.__getitem__) for rows in (used, short) if rows
    )
    fullest = [_fullest(trainer, rows, max_rows) for rows in longest]
    return max(fullest, key=lambda found: _layers_bytes(trainer, plan, found))


def _fullest(trainer: FtcliTrainer, rows: Sequence[int], max_rows: int) -> MicroBatch:
    """As many of the first rows as a micro-batch of at most `max_rows` can have."""
    examples = trainer.data.train.read(rows)
    ids = [example["input_ids"] for example in examples]
    count = trainer.collator.rows_of_largest(ids, max_rows)
    return MicroBatch(list(rows[:count]), trainer.collator(examples[:count]))


def _layers_bytes(trainer: FtcliTrainer, plan: Plan, found: MicroBatch) -> int:
    """What the layers take for packed rows: long rows keep fewer attention probabilities."""
    layout, tokens = found.inputs.layout, found.inputs.input_ids.numel()
    assert layout is not None
    keys = round(saved_probabilities(layout) / tokens)  # a token's, on average
    choices = replace(plan.estimated, micro_batch=1, seq_len=tokens, longest_row=keys)
    shape = shape_of(trainer.model)
    assert shape is not None, "it was planned for"
    return layers_bytes(shape, choices) + rebuilt_layer_bytes(shape, choices)


def _train_on_largest(trainer: FtcliTrainer, plan: Plan, max_rows: int) -> list[int]:
    """Train on the largest micro-batch; returns its rows.

    Where a step has several micro-batches, the gradients of an earlier one are in memory too.
    """
    largest = _largest_micro_batch(trainer, plan, max_rows)
    weights = {name: w for name, w in trainer.model.named_parameters() if w.requires_grad}
    last = _last_weights(trainer, plan, weights)
    sampler = trainer.data.sampler
    if len(largest.rows) < min(sampler.batch_size, len(sampler.order)) or last is not None:
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
    trainer.forward_backward([largest], WHERE, of=last)
    return largest.rows


def _last_weights(
    trainer: FtcliTrainer, plan: Plan, weights: dict[str, torch.Tensor]
) -> list[torch.Tensor] | None:
    """Weights at which the backward pass may end, as it frees memory from there on; None: all.

    A card goes all the way: its products have workspaces and its allocator leaves gaps. So does a
    training whose gradients take much of the memory.
    """
    if trainer.args.device.type == "cuda":
        return None
    gradients = max(items["gradients"] for items in plan.estimate.timeline.values())
    if gradients > LITTLE * plan.estimate.peak_bytes:
        return None
    layers = {name: int(number[1]) for name in weights if (number := LAYER.search(name))}
    trained = sorted(set(layers.values()))
    if len(trained) <= LAST_LAYERS:
        return None
    first = trained[-max(LAST_LAYERS, len(trained) // 8)]
    return [weight for name, weight in weights.items() if layers.get(name, first) >= first]


def _room_for_states(trainer: FtcliTrainer, plan: Plan) -> torch.Tensor | None:
    """Memory that the optimizer's states will take at its first step and from then on."""
    if optimizer_bytes(trainer.optimizer):
        return None
    size = plan.estimate.breakdown["optimizer"]
    # written to: else a CPU's system gives no memory for it yet
    return torch.ones(size, dtype=torch.uint8, device=trainer.args.device)


def _save_and_delete(trainer: FtcliTrainer, plan: Plan) -> None:
    folder: Path = trainer.run.checkpoints / f"{TEMPORARY}check"
    started = time.monotonic()
    try:
        save_checkpoint(trainer, trainer.position(), folder)
        seconds = time.monotonic() - started
        written = size = folder_bytes(folder)
    finally:
        delete_folder(folder)
    if not optimizer_bytes(trainer.optimizer):
        size += plan.estimate.breakdown["optimizer"] + plan.estimate.managed_bytes
    trainer.checkpoint_bytes, trainer.checkpoint_seconds = size, seconds * size / written
    require_space(trainer.run.checkpoints, size, "a checkpoint")


# The first steps fill caches and choose kernels, and are not timed.
UNTIMED_STEPS = 2
TIMED_STEPS = 4


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


def measure_speed(job: TrainJob) -> float:
    """Tokens a second, padding not counted, of a few steps without a validation or a save."""
    plan = job.plan
    steps = UNTIMED_STEPS + TIMED_STEPS
    enough = steps * job.recipe.training.batch_size / job.dataset.epoch_counts.rows
    timed = {"steps": steps, "epochs": max(plan.epochs, enough), "warmup_steps": 0}
    short = plan.model_copy(update=timed)
    trainer = build_trainer(replace(job, plan=short))
    clock = StepClock()
    trainer.add_callback(clock)
    trainer.train()
    tokens = sum(trainer.data.sampler.tokens(step) for step in range(UNTIMED_STEPS, steps))
    return tokens / clock.seconds
