"""What a training really takes: the peak of its steps, and of its validations, apart from the rest.

On a card torch counts what its tensors and its allocator hold, weights included, as the estimate
does; on a CPU the system counts what the process takes, and what it had before is taken off.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftcli.kernels.cpu import trim_heap
from ftcli.memory.hardware import Hardware

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

    def or_greater(self, other: Peak) -> Peak:
        """The greater of the two, figure by figure."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Peak(*(max(found) if (found := _there(pair)) else None for pair in pairs))


def _there(pair: tuple[int | None, int | None]) -> list[int]:
    return [value for value in pair if value is not None]


class MemoryMeter:
    """Peaks between resets, and the peak of the whole process beside them.

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
        """Begin to watch what is no step."""
        self._meter.reset()

    def watched_bytes(self) -> int | None:
        """The peak since then, where the device has such a figure; gives back what is free."""
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
        self.steps = self.steps.or_greater(self._meter.peak())
        self._meter.reset()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.validations = self.validations.or_greater(self._meter.peak())


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
