"""`ftcli estimate-vram --calibrate RUN …`: compare estimates with the measurements of trainings."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ftcli.errors import FtcliError
from ftcli.memory import estimate
from ftcli.memory.interval import Residuals, residuals_of
from ftcli.models.architectures.find import find_architecture
from ftcli.runs.folder import RunFolder
from ftcli.shell import command
from ftcli.training.opening import run_at
from ftcli.training.run_record import MemoryRecord

Measure = Literal["allocated", "reserved", "resident"]


@dataclass(frozen=True)
class Figure:
    """One measurement, its estimate by this version, and the interval."""

    measure: Measure
    estimated_bytes: int
    low_bytes: int
    high_bytes: int
    measured_bytes: int

    @property
    def error(self) -> float:
        """Estimated over measured, less one."""
        return self.estimated_bytes / self.measured_bytes - 1

    @property
    def inside(self) -> bool:
        return self.low_bytes <= self.measured_bytes <= self.high_bytes

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"error": self.error, "inside": self.inside}


@dataclass(frozen=True)
class CalibratedRun:
    """A run with its measurements: two on a GPU, one on a CPU."""

    run: RunFolder
    record: MemoryRecord
    machine: str
    figures: tuple[Figure, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "run_dir": str(self.run.path),
            "model": self.record.model,
            "mode": self.record.choices.mode,
            "machine": self.machine,
            "figures": [figure.as_json() for figure in self.figures],
        }


@dataclass(frozen=True)
class CalibrationResult:
    """Runs in the order of the command line."""

    runs: tuple[CalibratedRun, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(figure for run in self.runs for figure in run.figures)

    @property
    def median_error(self) -> float:
        """Of the absolute relative errors of all figures."""
        return statistics.median(abs(figure.error) for figure in self.figures)

    @property
    def inside(self) -> int:
        """Figures inside their interval."""
        return sum(figure.inside for figure in self.figures)

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": [run.as_json() for run in self.runs],
            "figures": len(self.figures),
            "median_error": self.median_error,
            "inside": self.inside,
        }


def calibrate_runs(paths: Sequence[Path]) -> CalibrationResult:
    """Estimate each run again, and compare with its measurements.

    Raises FtcliError: `run_missing`, `run_unmeasured`, `run_broken`.
    """
    return CalibrationResult(tuple(_calibrated(path) for path in paths))


def _calibrated(path: Path) -> CalibratedRun:
    run = run_at(path)
    manifest = run.read_manifest()
    plain = manifest.get("memory")
    if plain is None:
        raise FtcliError(
            "run_unmeasured",
            f"{path} has no measured memory: it finished no step; to measure: "
            f"{command('train', run.path, '--fresh')}",
        )
    record = MemoryRecord.of(plain, run.manifest)
    figures = tuple(_figures(record))
    if not figures:
        raise FtcliError(
            "run_unmeasured", f"{path} has no measured memory: no step was taken, or none could be"
        )
    return CalibratedRun(run, record, manifest["hardware"]["name"], figures)


def _figures(record: MemoryRecord) -> Iterator[Figure]:
    found = estimate(find_architecture(record.model), record.choices)
    allocated = residuals_of(record.choices, "allocated")
    pairs: tuple[tuple[Measure, int, Residuals, int | None], ...] = (
        ("allocated", found.peak_bytes, allocated, record.allocated_bytes),
        ("reserved", found.reserved_bytes, found.residuals, record.reserved_bytes),
        # malloc caches freed blocks, as a GPU's allocator does.
        ("resident", found.reserved_bytes, found.residuals, record.resident_bytes),
    )
    for measure, estimated, residuals, measured in pairs:
        if measured:
            low, high = round(residuals.low * estimated), round(residuals.high * estimated)
            yield Figure(measure, estimated, low, high, measured)
