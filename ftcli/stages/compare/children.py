"""Commands of ftcli in processes of their own: memory is a command's own, and a crash ends one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ftcli.errors import FtcliError, MachineError, Stopped
from ftcli.stopping import SIGNALS

# A process that was stopped by one of them ends with its number, as a code or as a signal.
STOPPED = {code: number for number in SIGNALS for code in (-number, 128 + number)}


class Children:
    """Runs commands one after the other, and hands the signals that it gets to the running one."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._child: subprocess.Popen[str] | None = None

    def ask(self, *words: str) -> dict[str, Any]:
        """What `ftcli WORDS --json` prints; raises its error as FtcliError, Stopped on a signal."""
        self._stop_if_asked()
        code, out = self.run([*words, "--json"])
        self._signal = self._signal or STOPPED.get(code)
        self._stop_if_asked()
        try:
            found: dict[str, Any] = json.loads(out)
        except ValueError as error:
            raise MachineError("crashed", _crashed(code)) from error
        if "error" in found:
            raise FtcliError(found["error"]["code"], found["error"]["message"])
        return found

    def run(self, words: Sequence[str]) -> tuple[int, str]:
        """Exit code and stdout of a command; what it says on stderr is seen as it comes."""
        # -P: a module of the user's in this folder must not take another's place. A group of its
        # own, or Ctrl-C would reach the process twice.
        command = [sys.executable, "-P", "-m", "ftcli", *words]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
        try:
            if self._signal is not None:  # it came while the process was made
                self._child.send_signal(self._signal)
            out, _ = self._child.communicate()
            return self._child.returncode, out
        finally:
            self._child = None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the running command end its step, a second ends it."""
        earlier = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        if self._child is not None:
            self._child.send_signal(number)

    def _stop_if_asked(self) -> None:
        if self._signal is not None:
            raise Stopped("stopped", self._signal)


def _crashed(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9), as a system does that runs out of memory"
    if code < 0:
        return f"its process crashed (signal {-code})"
    return f"its process ended with code {code}; what it printed stands above"
