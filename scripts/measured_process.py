"""Run a program; measure its time and the peak memory of it and its descendants."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# A look costs a few milliseconds of a core, and the timed program uses all cores.
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Measured:
    """One run, from command to end."""

    seconds: float
    peak_bytes: int
    """Σ resident memory of the processes; shared pages count once (Linux: PSS)."""
    stopped: bool
    """It exceeded the limit."""


def measure(
    words: Sequence[str], environment: Mapping[str, str], log: Path, limit_seconds: float
) -> Measured:
    """Run it with its output in `log`; stop it at the limit.

    Linux counts the caller's own memory in the peak: it should be less than the program's.
    """
    with log.open("a") as file:
        started = time.monotonic()
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
        watch = _Watch(process.pid, started + limit_seconds)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    watch.ended.set()
    watch.join()
    if process.returncode and not watch.stopped:
        raise SystemExit(f"{' '.join(words[:2])} ended with {process.returncode}; see {log}")
    # the kernel's own peak (Linux: KiB) of the largest process includes the time between two looks
    return Measured(seconds, max(watch.peak_bytes, usage.ru_maxrss * 1024), watch.stopped)


class _Watch(threading.Thread):
    def __init__(self, pid: int, deadline: float) -> None:
        super().__init__(daemon=True)
        self.root = psutil.Process(pid)
        self.deadline = deadline
        self.ended = threading.Event()
        self.peak_bytes = 0
        self.stopped = False

    def run(self) -> None:
        while not self.ended.wait(LOOK_SECONDS):
            try:
                family = [self.root, *self.root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.peak_bytes = max(self.peak_bytes, _resident_bytes(family))
            if time.monotonic() > self.deadline:
                self.stopped = True
                for process in reversed(family):
                    _kill(process)


def _resident_bytes(family: Sequence[psutil.Process]) -> int:
    """RSS for a single process, whose pages are not shared: PSS takes longer to read."""
    total = 0
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            alone = len(family) == 1
            total += process.memory_info().rss if alone else process.memory_full_info().pss
    return total


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
