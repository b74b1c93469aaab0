"""Measure steps: their peak memory, the longest batch before the first step, speed of a few steps.

On a GPU torch counts the bytes of its tensors and of its allocator, including weights, as the
estimate does. On a CPU the system counts the process's memory; its memory before is subtracted."""

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
from ftcli.kernels.slots import Layout
from ftcli.memory.activations.layers import KEPT_KEYS, layers_bytes, rebuilt_layer_bytes
from ftcli.memory.hardware import Hardware
from ftcli.models.device import uses_gpu
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

# proc(5): writing 5 to clear_refs resets VmHWM to the current resident size (Linux 4.0).
CLEAR_REFS, RESET_PEAK = Path("/proc/self/clear_refs"), "5"


@dataclass(frozen=True)
class Peak:
    """Peak memory; None if it was not measured or the device has no such figure."""

    allocated_bytes: int | None = None
    """Of tensors on the GPU: torch.cuda.max_memory_allocated."""
    reserved_bytes: int | None = None
    """Of torch's allocator on the GPU: torch.cuda.max_memory_reserved."""
    resident_bytes: int | None = None
    """RAM on a CPU, above the process's memory before the model was loaded."""

    def maximum(self, other: Peak) -> Peak:
        """The greater of the two, figure by figure."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Peak(*(max((v for v in pair if v is not None), default=None) for pair in pairs))


class MemoryMeter:
    """Peaks between resets, and the peak of the whole process.

    Create it before the model is loaded.
    """

    def __init__(self, hardware: Hardware) -> None:
        self._on_gpu = hardware.kind == "cuda"
        self.release_unused()
        self._start_bytes = 0 if self._on_gpu else _resident_bytes()
        self._first_peak_bytes = self._process_peak_bytes = self._current_peak_bytes()
        self._resets = True

    def release_unused(self) -> None:
        """Free cached memory: what loading leaves is not part of a step's peak."""
        if self._on_gpu:
            torch.cuda.empty_cache()
        else:
            trim_heap()

    def reset(self) -> None:
        """Start a new peak at the current memory."""
        self._process_peak_bytes = self.process_peak_bytes()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(0)
            return
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
        except OSError:  # not Linux, or forbidden: the peak stays that of the whole process
            self._resets = False

    def peak(self) -> Peak:
        """The peak since the last reset."""
        found = self._current_peak_bytes()
        if self._on_gpu:
            return Peak(allocated_bytes=found, reserved_bytes=torch.cuda.max_memory_reserved(0))
        if not self._resets and found <= self._first_peak_bytes:
            return Peak()  # the process took more before the training
        return Peak(resident_bytes=max(0, found - self._start_bytes))

    def process_peak_bytes(self) -> int:
        """Peak of all tensors on the GPU, or of this process's RAM."""
        return max(self._process_peak_bytes, self._current_peak_bytes())

    def _current_peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(0) if self._on_gpu else _peak_resident_bytes()


class StepMemory(TrainerCallback):
    """Measures the peak of the optimizer steps, and that of the validations."""

    def __init__(self, meter: MemoryMeter) -> None:
        self.steps = Peak()
        self.validations = Peak()
        self._meter = meter

    def process_peak_bytes(self) -> int:
        """Peak of the whole process so far, including loading."""
        return self._meter.process_peak_bytes()

    def reset(self) -> None:
        """Start to measure something that is not a step."""
        self._meter.reset()

    def peak_bytes(self) -> int | None:
        """The peak since `reset`, if the device has such a figure; frees unused memory."""
        peak = self._meter.peak()
        self._meter.release_unused()
        return peak.allocated_bytes or peak.resident_bytes

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._meter.release_unused()

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
    """Peak resident size of this process: proc(5)'s VmHWM, elsewhere getrusage(2)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource  # Unix only

        # ru_maxrss is in KiB, but in bytes on macOS.
        unit = 1 if platform.system() == "Darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


WHERE = "the longest batch"
LAYER = re.compile(r"\.(\d+)\.")  # in the name of a weight
# At least so many, and an eighth of all: a model may mix kinds of layers.
LAST_LAYERS = 2
# Share of the peak up to which gradients, which are allocated early here, do not matter.
SMALL_SHARE = 1 / 20


def run_preflight(
    trainer: FtcliTrainer, plan: Plan, memory: StepMemory, reporter: Reporter
) -> float:
    """Train on the largest micro-batch, validate and save, and undo all of it.

    Halves the micro-batch if memory runs out. Returns an estimate of the seconds of all steps to
    come. Raises torch's error if one row is too much, NotFiniteError, and MachineError
    (`disk_full`).
    """
    before = random_state()
    memory.reset()
    reserved = _reserve_optimizer_states(trainer, plan)
    trainer.model.train()
    rows, seconds = trainer.oom_retry.run(
        lambda max_rows: _train_on_largest(trainer, plan, max_rows), trainer.zero_grad, WHERE
    )
    trainer.zero_grad()
    done = ["trained"]
    if trainer.data.validation is not None:
        trainer.score(trainer.data.validation.longest_first())
        done.append("validated")
    del reserved
    _save_and_delete(trainer, plan)
    restore_random_state(before)
    lengths, sampler = trainer.data.train.lengths, trainer.data.sampler
    longest, peak = max(lengths[row] for row in rows), memory.peak_bytes()
    size = f", peak {gib(peak)}" if peak is not None else ""
    reporter.note(f"preflight: longest batch ({longest} tokens) {', '.join(done)} and saved{size}")
    tokens = sum(sampler.tokens(step) for step in range(trainer.state.global_step, plan.steps))
    return seconds * tokens / sum(lengths[row] for row in rows) / trainer.args.world_size


def _largest_micro_batch(trainer: FtcliTrainer, plan: Plan, max_rows: int) -> MicroBatch:
    """The micro-batch of at most `max_rows` rows with the largest estimated memory.

    Padded: from the step with the longest row. Packed: from all rows, as every step fills its
    micro-batches with tokens.
    """
    sampler, lengths = trainer.data.sampler, trainer.data.train.lengths
    if isinstance(trainer.collator, PaddingCollator):
        place = max(range(len(sampler.order)), key=lambda i: lengths[sampler.order[i]])
        return _first_rows(trainer, sampler[place // sampler.batch_size], max_rows)
    used = set(sampler.order)
    short = [row for row in used if lengths[row] <= KEPT_KEYS]
    longest = (
        nlargest(sampler.batch_size, rows, lengths.__getitem__) for rows in (used, short) if rows
    )
    candidates = [_first_rows(trainer, rows, max_rows) for rows in longest]
    return max(candidates, key=lambda found: _layers_bytes(trainer, plan, found))


def _first_rows(trainer: FtcliTrainer, rows: Sequence[int], max_rows: int) -> MicroBatch:
    """As many of the first rows as fit in a micro-batch of at most `max_rows` rows."""
    examples = trainer.data.train.read(rows)
    ids = [example["input_ids"] for example in examples]
    count = trainer.collator.rows_of_largest(ids, max_rows)
    return MicroBatch(list(rows[:count]), trainer.collator(examples[:count]))


def _layers_bytes(trainer: FtcliTrainer, plan: Plan, found: MicroBatch) -> int:
    """Estimated memory of the layers for packed rows: short ones save attention probabilities."""
    layout, tokens = found.inputs.layout, found.inputs.input_ids.numel()
    keys = 0
    if isinstance(layout, Layout):
        keys = round(saved_probabilities(layout) / tokens)  # per token, on average
    choices = replace(plan.estimated, micro_batch=1, seq_len=tokens, longest_row=keys)
    architecture = trainer.architecture
    return layers_bytes(architecture, choices) + rebuilt_layer_bytes(architecture, choices)


def _train_on_largest(trainer: FtcliTrainer, plan: Plan, max_rows: int) -> tuple[list[int], float]:
    """Train on the largest micro-batch; returns its rows, and the seconds that it takes in a step.

    If a step has several micro-batches, the gradients of an earlier one are in memory too.
    """
    largest = _largest_micro_batch(trainer, plan, max_rows)
    weights = {name: w for name, w in trainer.model.named_parameters() if w.requires_grad}
    layers = {name: int(number[1]) for name in weights if (number := LAYER.search(name))}
    last, first = None, _first_of_last_layers(trainer, plan, sorted(set(layers.values())))
    if first is not None:
        last = [weight for name, weight in weights.items() if layers.get(name, first) >= first]
    sampler = trainer.data.sampler
    has_gradients = len(largest.rows) < min(sampler.batch_size, len(sampler.order))
    if has_gradients or last is not None:
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
    if trainer.args.device.type == "cuda":
        trainer.forward_backward([largest], WHERE)  # kernels are compiled and chosen here
        if not has_gradients:
            trainer.zero_grad()
    started = time.monotonic()
    trainer.forward_backward([largest], WHERE, of=last)
    return largest.rows, (time.monotonic() - started) * _whole_pass(trainer, plan, first)


def _first_of_last_layers(
    trainer: FtcliTrainer, plan: Plan, trained_layers: Sequence[int]
) -> int | None:
    """Layer at which the backward pass may end, as it only frees memory after that; None: all.

    A GPU runs all of it: its products have workspaces, and its allocator leaves gaps. So does a
    training whose gradients take much of the memory.
    """
    if trainer.args.device.type == "cuda" or len(trained_layers) <= LAST_LAYERS:
        return None
    gradients = max(items["gradients"] for items in plan.estimate.timeline.values())
    if gradients > SMALL_SHARE * plan.estimate.peak_bytes:
        return None
    return trained_layers[-max(LAST_LAYERS, len(trained_layers) // 8)]


def _whole_pass(trainer: FtcliTrainer, plan: Plan, first: int | None) -> float:
    """Time of a whole pass, relative to one whose backward pass ends at layer `first`."""
    architecture = trainer.architecture
    if first is None:
        return 1.0
    # Of a forward pass: without gradients of frozen weights; checkpointing repeats the forward.
    backward = 2 if plan.training.gradient_checkpointing else 1
    return (1 + backward) / (1 + backward * (architecture.layers - first) / architecture.layers)


def _reserve_optimizer_states(trainer: FtcliTrainer, plan: Plan) -> torch.Tensor | None:
    """As much memory as the optimizer's states take from the first step on."""
    if optimizer_bytes(trainer.optimizer):
        return None
    size = plan.estimate.breakdown["optimizer"]
    # ones, not empty: a CPU's system allocates memory when it is written
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


# The first steps, which fill caches and choose kernels, are not timed.
UNTIMED_STEPS = 2
TIMED_STEPS = 4


class StepClock(TrainerCallback):
    """Seconds since the last untimed step."""

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
    """Tokens per second, without padding, of a few steps without a validation or a save."""
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
