"""Results of a training: `run.json` is a RunRecord (`plan.json`: training/plan/plan.py)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ftcli.runs.results import Result


class TrainingRecord(Result):
    """A file that every use of a run needs."""

    error_code: ClassVar[str] = "run_broken"
    error_remedy: ClassVar[str] = "restore it from a copy, or train again"


class HardwareRecord(Result):
    """The machine of a training."""

    name: str
    memory_bytes: int | None = None


class ReplayRecord(Result):
    """An epoch's rows with data.replay."""

    source: str
    task_rows: int
    replay_rows: int
    replay_tokens: int


class MemoryFigures(Result):
    """`memory` of run.json: the plan's estimate, and the peaks of the steps.

    A measurement is None if the device has no such figure or no step was taken.
    """

    error_code: ClassVar[str] = "run_broken"
    error_remedy: ClassVar[str] = "train again"

    device: Literal["cuda", "cpu"]
    estimated_bytes: int
    """Allocated by tensors; the interval is `low_bytes` to `high_bytes`."""
    low_bytes: int
    high_bytes: int
    estimated_reserved_bytes: int
    """Of the GPU's caching allocator."""
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    resident_bytes: int | None = None
    """RAM, above the process's memory before the model was loaded."""
    validation_bytes: int | None = None
    """Allocated on a GPU by validations; None on a CPU, where the process keeps the freed memory
    of steps."""
    model: str
    """Its hub id or folder."""
    choices: Any


class TrainingResult(Result):
    """`result` of run.json, as `ftcli train --json` prints it."""

    state: Literal["finished"] = "finished"
    steps: int
    train_loss: float | None = None
    eval_loss: float | None = None
    first_eval_loss: float | None = None
    best_step: int | None = None
    tokens_per_second: float | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    peak_memory_bytes: int | None = None
    saved_bytes: int | None = None
    """Of the trained weights."""
    checkpoint_bytes: int | None = None
    """Of all checkpoints that the run folder has."""
    stop_rate: float | None = None
    """Share of a few sample answers that finished (EOS), at the end of the training."""
    stop_rate_rows: int = 0
    training_seconds: float | None = None
    seconds: float | None = None


class FileMark(Result):
    """Size and date of a large file, to recognise it without reading it."""

    bytes: int
    mtime_ns: int


class RunRecord(TrainingRecord):
    """`run.json`, written at the start, at each checkpoint, after the last step and at the end.

    Fields that are not written yet are missing."""

    state: Literal["training", "stopped", "finished"] | None = None
    run_id: str | None = None
    recipe: str | None = None
    parent: str | None = None
    data: str | None = None
    replay: ReplayRecord | None = None
    seed: int | None = None
    hardware: HardwareRecord | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    started: str | None = None
    saved_step: int | None = None
    """Of the newest checkpoint."""
    memory: MemoryFigures | None = None
    result: TrainingResult | None = None
    weights: dict[str, str] | None = None
    """File of the trained weights → sha256."""
    weight_files: dict[str, FileMark] | None = None
    finished: str | None = None
