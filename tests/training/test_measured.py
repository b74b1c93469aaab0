"""Peaks are those since the last reset, and loading is no part of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ftcli.models.device import find_hardware
from ftcli.training import preflight
from ftcli.training.preflight import MemoryMeter, Peak
from tests.conftest import Patch

MIB = 2**20
TENSOR_BYTES = 64 * MIB
# The allocator rounds, and what else the interpreter does in between.
MARGIN_BYTES = 16 * MIB

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="measures a CPU's memory")


def tensor() -> torch.Tensor:
    return torch.ones(TENSOR_BYTES // 4)


def test_the_greater_of_two_peaks_is_taken_figure_by_figure() -> None:
    greater = Peak(allocated_bytes=3, reserved_bytes=4).maximum(Peak(allocated_bytes=5))
    assert greater == Peak(allocated_bytes=5, reserved_bytes=4)
    assert Peak().maximum(Peak()) == Peak()


@on_cpu
def test_a_peak_is_measured_since_the_reset() -> None:
    meter = MemoryMeter(find_hardware("auto"))
    held = tensor()
    del held
    meter.release_unused()
    meter.reset()
    before = meter.peak().resident_bytes
    assert before is not None and before < MARGIN_BYTES
    first, second = tensor(), tensor()
    del first, second
    found = meter.peak().resident_bytes
    assert found is not None and abs(found - before - 2 * TENSOR_BYTES) < MARGIN_BYTES
    meter.release_unused()
    meter.reset()
    assert meter.process_peak_bytes() > 2 * TENSOR_BYTES, "the process's peak outlives a reset"


@on_cpu
def test_without_a_reset_a_peak_counts_only_above_that_of_the_beginning(
    monkeypatch: Patch, tmp_path: Path
) -> None:
    peaks = iter([100, 100, 100, 300, 300])
    monkeypatch.setattr(preflight, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(preflight, "_resident_bytes", lambda: 80)
    monkeypatch.setattr(preflight, "_peak_resident_bytes", lambda: next(peaks))
    meter = MemoryMeter(find_hardware("auto"))
    meter.reset()
    assert meter.peak() == Peak(), "the process took more before"
    assert meter.peak() == Peak(resident_bytes=220)
