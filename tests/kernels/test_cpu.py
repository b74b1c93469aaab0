"""Garbage collection: rarely while a command starts, then as usual, and not at the end."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ftcli.kernels import cpu


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_a_command_starts_without_collecting_and_continues_as_usual() -> None:
    cpu.start_gc_tuning()
    assert gc.get_threshold()[0] == cpu.RARE_GC_THRESHOLD
    cpu.end_gc_tuning()
    assert gc.get_threshold() == cpu.DEFAULT_GC_THRESHOLD
    assert gc.get_freeze_count() > 1000


def test_settings_of_other_programs_stay() -> None:
    """A program that imports ftcli has settings of its own; a second training finds garbage."""
    gc.set_threshold(1234, 5, 6)
    cpu.end_gc_tuning()
    assert gc.get_threshold() == (1234, 5, 6)
    assert gc.get_freeze_count() == 0


def test_a_command_ends_normally_and_flushes_its_output() -> None:
    command = [sys.executable, "-m", "ftcli", "schema"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("}")
    wrong = subprocess.run([*command, "--nonsense"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--nonsense" in wrong.stderr
