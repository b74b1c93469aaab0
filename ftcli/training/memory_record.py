"""`memory` in run.json: what a training was estimated to take, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ftcli.errors import FtcliError
from ftcli.memory import Choices
from ftcli.memory.interval import residuals_of
from ftcli.memory.shapes import Shape
from ftcli.training.plan.plan import Plan

if TYPE_CHECKING:
    from ftcli.training.measured import StepMemory
    from ftcli.training.scene import Scene

MEASUREMENTS = ("allocated_bytes", "reserved_bytes", "resident_bytes", "validation_bytes")


@dataclass(frozen=True)
class MemoryRecord:
    """Bytes of a training's steps; None where the device has no such figure or no step was taken.

    Estimates are those of the plan; `shape` and `choices` are all that a later one needs.
    """

    device: Literal["cuda", "cpu", "mps"]
    estimated_bytes: int
    """Allocated by tensors, with the interval of such figures: `low_bytes` to `high_bytes`."""
    low_bytes: int
    high_bytes: int
    estimated_reserved_bytes: int
    """Held by the caching allocator of a card."""
    allocated_bytes: int | None
    reserved_bytes: int | None
    resident_bytes: int | None
    """Of the machine's memory, above what the process held before the model was there."""
    validation_bytes: int | None
    """Allocated on a card while rows were scored in the middle of the training; none on a CPU,
    where a step's freed memory stays with the process."""
    shape: Shape
    choices: Choices

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def or_greater(self, earlier: Mapping[str, Any]) -> MemoryRecord:
        """With the greater of the measurements of two sittings of one run, on the same device."""
        if earlier.get("device") != self.device:
            return self
        pairs = {name: (getattr(self, name), earlier.get(name)) for name in MEASUREMENTS}
        greater = {name: max(pair, key=lambda size: size or 0) for name, pair in pairs.items()}
        return replace(self, **greater)


def memory_record(scene: Scene, plan: Plan, measured: StepMemory) -> MemoryRecord:
    """The plan's estimate beside what one sitting measured."""
    residuals = residuals_of(plan.estimated, "allocated")
    peak_bytes = plan.estimate.peak_bytes
    steps, validations = measured.steps, measured.validations
    return MemoryRecord(
        device=scene.hardware.kind,
        estimated_bytes=peak_bytes,
        low_bytes=round(residuals.low * peak_bytes),
        high_bytes=round(residuals.high * peak_bytes),
        estimated_reserved_bytes=plan.estimate.reserved_bytes,
        allocated_bytes=steps.allocated_bytes,
        reserved_bytes=steps.reserved_bytes,
        resident_bytes=steps.resident_bytes,
        validation_bytes=validations.allocated_bytes,
        shape=scene.shape,
        choices=plan.estimated,
    )


def read_record(plain: object, file: str) -> MemoryRecord:
    """The record that `as_json` wrote into `file`; raises FtcliError (`run_broken`)."""
    from pydantic import TypeAdapter, ValidationError

    try:
        record = TypeAdapter(MemoryRecord).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FtcliError(
            "run_broken",
            f"memory.{where}: {first['msg']}; another version of ftcli wrote it; train again",
            file=file,
        ) from error
    return record
