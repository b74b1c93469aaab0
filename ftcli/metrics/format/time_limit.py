"""An end to the work on one answer: expressions and schemas are the user's, answers anybody's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Ordinary answers take a thousandth of it.
SECONDS = 5.0
# A library may swallow the first.
SECONDS_BETWEEN = 1.0


class TimeIsUp(BaseException):
    """Beside Exception, so that no library takes it for one of its own."""


@contextmanager
def within(seconds: float = SECONDS) -> Iterator[None]:
    """Raise TimeIsUp after so many seconds of this process's own work.

    Python's `re` looks for signals while it searches, and SQLite is asked now and then. Signals
    reach the main thread alone, and Windows has none of this kind: elsewhere nothing is limited.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "setitimer"):
        yield
        return
    working = True

    def end(number: int, frame: object) -> None:
        if working:
            raise TimeIsUp

    before = signal.signal(signal.SIGVTALRM, end)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, SECONDS_BETWEEN)
        try:
            yield
        finally:
            working = False
    finally:  # reached also where the time is up in the line above
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
