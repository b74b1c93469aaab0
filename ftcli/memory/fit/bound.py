"""Whether a step surely fits: the one rule of `train`, `--fit` and `--max`."""

from __future__ import annotations

from ftcli.memory import Choices, Estimate, estimate
from ftcli.memory.hardware import Hardware, context_bytes
from ftcli.memory.shapes import Shape

# Share of a CPU's free memory that a plan may fill: no measured runs give it an interval.
CPU_MEMORY_SHARE = 0.92


def estimate_on(shape: Shape, choices: Choices, hardware: Hardware | None) -> Estimate:
    """The estimate with the CUDA context of this card; without one, with the largest known."""
    return estimate(shape, choices, hardware.compute_capability if hardware else None)


def fits(found: Estimate, hardware: Hardware) -> bool:
    """On a card by the upper end of the estimate's interval."""
    share = 1 if hardware.kind == "cuda" else CPU_MEMORY_SHARE
    return needed_bytes(found, hardware) <= share * hardware.free_bytes


def needed_bytes(found: Estimate, hardware: Hardware) -> int:
    """The most that a step takes of the memory that `hardware` calls free."""
    if hardware.kind != "cuda":
        return found.peak_bytes
    # The context of this very process is not part of what CUDA calls free.
    return found.high_bytes - context_bytes(hardware.compute_capability)
