"""The end of a piece of foreign Python that does not look at the clock, in whatever thread it runs.

A second thread looks at its processor time and raises an exception in it, between two of its
instructions: not while one of them is under way, such as a comparison of two long lists.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

SECONDS_BETWEEN_LOOKS = 0.05
LOOKS_BEFORE_SLEEP = 20
# A finaliser may swallow the exception; in this time no unwinding is still under way.
SECONDS_BETWEEN_SHOTS = 1.0

Clock = Callable[[], float]


class TimeIsUp(BaseException):
    """Raised in a thread by another one."""


@dataclass
class _Work:
    thread: int
    clock: Clock
    ends: float
    shot: bool = False


class Watch:
    """Ends what has been entered and not left when its time is up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._asleep = True
        self._thread: threading.Thread | None = None
        self._works: dict[int, _Work] = {}

    def enter(self, seconds: float) -> int:
        """Begin work in this thread, which gets TimeIsUp after so many seconds of work.

        All of it must stand in a `try` whose `finally`, and whose handler of TimeIsUp, leave it.
        """
        thread = threading.get_ident()
        clock = _clock(thread)
        self._works[thread] = _Work(thread, clock, clock() + seconds)
        if self._asleep:
            self._begin()
        return thread

    def leave(self, thread: int) -> None:
        """After this nothing is raised any more, nor what has been and has not arrived."""
        with self._lock:
            work = self._works.get(thread)
            if work is not None and work.shot:
                _raise_in(thread, None)
            self._works.pop(thread, None)

    def _begin(self) -> None:
        with self._lock:
            self._asleep = False
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        idle = 0
        while True:
            idle = 0 if self._works else idle + 1
            if idle > LOOKS_BEFORE_SLEEP:
                self._sleep()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for work in tuple(self._works.values()):
                self._end_late(work)

    def _sleep(self) -> None:
        with self._lock:
            self._wake.clear()
            # What is entered from here on sees it; what was entered before is seen here.
            self._asleep = True
            if self._works:
                self._asleep = False
                return
        self._wake.wait()

    def _end_late(self, work: _Work) -> None:
        with self._lock:
            if self._works.get(work.thread) is not work:
                return
            try:
                now = work.clock()
            except OSError:  # its thread has ended
                del self._works[work.thread]
                return
            if now > work.ends:
                work.shot, work.ends = True, now + SECONDS_BETWEEN_SHOTS
                _raise_in(work.thread, TimeIsUp)


def _clock(thread: int) -> Clock:
    """The processor time of this thread, told in any other; elsewhere than on Unix, the time."""
    if hasattr(time, "pthread_getcpuclockid"):
        return functools.partial(time.clock_gettime, time.pthread_getcpuclockid(thread))
    return time.monotonic


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """CPython's PyThreadState_SetAsyncExc; without a kind, take back what has not arrived."""
    exception = ctypes.py_object() if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)


watch = Watch()
if hasattr(os, "register_at_fork"):
    # Threads and what they hold stay behind in the parent.
    os.register_at_fork(after_in_child=watch.__init__)  # type: ignore[misc]
