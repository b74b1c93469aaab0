"""A time limit for the score of one answer: patterns and schemas are the user's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Ordinary answers take a thousandth of it.
SECONDS = 5.0
# A library may swallow the first signal.
SECONDS_BETWEEN = 1.0


class TimeIsUp(BaseException):
    """Not an Exception, so that no library catches it."""


@contextmanager
def within(seconds: float = SECONDS) -> Iterator[None]:
    """Raise TimeIsUp after so many seconds of this process's own work.

    Python's `re` and SQLite's progress handler let signals through. Only the main thread receives
    signals, and Windows has no such timer: there nothing is limited.
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
