"""SIGINT and SIGTERM: the first ends a command where nothing is lost, a second one at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """What signals ask for: `number` of the first one, or none yet.

    A signal raises KeyboardInterrupt where the program stands, unless the program is `patient`:
    then it only leaves its number, and whoever takes the steps looks at it. From then on signals do
    what they do to every program: they end it at once.
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

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self.patient:
            raise KeyboardInterrupt
        self._announce("stopping after this step (once more: at once, back to the last checkpoint)")
