"""SIGINT and SIGTERM: the first ends a command without loss, a second one immediately."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ftcli.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """`number` of the first signal; None without one.

    A signal raises KeyboardInterrupt; if the program is `patient` it only sets `number`, which the
    training loop reads after each step. A second signal ends the program, as by default.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.number: int | None = None
        self._announce = announce
        self.patient = False
        """Whether the program ends by itself soon after a signal."""

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals until the block ends."""
        earlier = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    @contextmanager
    def ending_with(self, message: str) -> Iterator[None]:
        """Catch the signals until the block ends, and raise Stopped with this message."""
        try:
            with self.caught():
                yield
        except KeyboardInterrupt as interrupt:
            raise Stopped(message, self.number or signal.SIGINT) from interrupt

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self.patient:
            raise KeyboardInterrupt
        self._announce(
            "stopping after this step (once more: immediately, back to the last checkpoint)"
        )
