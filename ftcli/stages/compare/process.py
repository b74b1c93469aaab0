"""Run a task in a process of its own: its memory is its own, and its crash ends nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ftcli.console import Reporter
from ftcli.errors import DataError, FtcliError, MachineError, ModelError, Stopped, UsageError

if TYPE_CHECKING:
    from ftcli.stages.compare.work import Task

FAMILY = {kind.__name__: kind for kind in (DataError, FtcliError, MachineError, ModelError)}
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A process that was stopped by one of them ends with its number, as a code or as a signal.
STOPPED = {code: number for number in SIGNALS for code in (-number, 128 + number)}


class Worker:
    """Runs tasks one after the other, and hands the signals that it gets to the running one."""

    def __init__(self, *, one_process: bool, reporter: Reporter) -> None:
        self.signal_number: int | None = None
        self._one_process = one_process
        self._reporter = reporter
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, task: Task) -> dict[str, Any]:
        """What the task comes to; raises its FtcliError, and Stopped after a signal."""
        if self._one_process:
            from ftcli.stages.compare.work import perform

            return perform(task, self._reporter)
        self._require_quiet()
        with tempfile.TemporaryDirectory(prefix="ftcli-") as folder:
            answer = Path(folder) / "answer.json"
            code = self._wait_for(json.dumps(asdict(task)), answer)
            self._require_quiet()
            if code in STOPPED:
                raise Stopped("stopped", STOPPED[code])
            if not answer.is_file():
                raise MachineError("crashed", _crashed(code))
            found = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in found:
            raise error_from_json(found["error"])
        value: dict[str, Any] = found["value"]
        return value

    @contextmanager
    def signals(self) -> Iterator[None]:
        """While tasks run: the first SIGINT or SIGTERM lets the running one end its step and save.

        In one process each training has its own handlers.
        """
        if self._one_process:
            yield
            return
        earlier = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _wait_for(self, task: str, answer: Path) -> int:
        # -P: a module of the user's in this folder must not take another's place. A group of its
        # own, or Ctrl-C would reach the process twice. Its stdout is our story: stdout is ours.
        command = [sys.executable, "-P", "-m", "ftcli.stages.compare", task, str(answer)]
        self._child = subprocess.Popen(command, stdout=2, process_group=0)
        try:
            if self.signal_number is not None:  # it came while the process was made
                self._child.send_signal(self.signal_number)
            return self._child.wait()
        finally:
            self._child = None

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        if self._child is not None:
            self._child.send_signal(number)

    def _require_quiet(self) -> None:
        if self.signal_number is not None:
            raise Stopped("stopped", self.signal_number)


def error_as_json(error: FtcliError) -> dict[str, Any]:
    """An error as another process can read it."""
    kind = "UsageError" if isinstance(error, UsageError) else type(error).__name__
    place = {"file": error.file, "line": error.line}
    return {"family": kind, "code": error.code, "message": error.message, **place}


def error_from_json(found: dict[str, Any]) -> FtcliError:
    """The same error again."""
    kind = (
        UsageError if found["family"] == "UsageError" else FAMILY.get(found["family"], FtcliError)
    )
    return kind(found["code"], found["message"], file=found["file"], line=found["line"])


def _crashed(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9), as a system does that runs out of memory"
    if code < 0:
        return f"its process crashed (signal {-code})"
    return f"its process ended with code {code}; what it printed stands above"
