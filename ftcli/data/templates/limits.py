"""How much time and memory a piece of foreign work may take, in whatever thread it runs."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

# Processor time: a conversation takes about 0.1 ms to write, and one of 10,000 turns about 0.1 s.
SECONDS = 2.0
# Beyond what the process holds already.
MEMORY_BYTES = 500_000_000
COUNTS_BETWEEN_LOOKS = 16
WORKS_BETWEEN_LOOKS = 256


class LimitError(Exception):
    """The work asks for more than it can need; the text continues its name."""


def too_long() -> LimitError:
    return LimitError(f"runs for more than {SECONDS:g} s")


class Budget(threading.local):
    """What the work of this thread has used up."""

    count = 0
    ends: float | None = None

    def begin(self) -> None:
        self.count, self.ends = 0, time.thread_time() + SECONDS

    def end(self) -> None:
        self.ends = None

    def spend(self) -> None:
        """Count one round, call or operator; raises LimitError."""
        self.count += 1
        if self.ends is None or self.count % COUNTS_BETWEEN_LOOKS == 0:
            self.look()

    def require_begun(self) -> None:
        """Raise LimitError where no work has begun: compiling is not yet work."""
        if self.ends is None:
            raise LimitError("has not begun")

    def look(self) -> None:
        """Raise LimitError where the time is up, or where no work has begun."""
        if self.ends is None:
            raise LimitError("has not begun")
        if time.thread_time() > self.ends:
            raise too_long()


class Ceiling:
    """Address space that the work in its block may take, beyond it MemoryError; Linux keeps to it.

    How much the process holds is read now and then, and anew where the ceiling has been hit: a
    model may have been opened since.
    """

    def __init__(self) -> None:
        self._age = WORKS_BETWEEN_LOOKS
        self._limit = 0
        self._inside = 0
        self._lock = threading.Lock()

    def was_old(self) -> bool:
        """Whether it was read for earlier work; the next is given a new one."""
        old, self._age = self._age > 0, WORKS_BETWEEN_LOOKS
        return old

    def __enter__(self) -> None:
        if sys.platform == "linux":
            with self._lock:
                self._inside += 1
                if self._inside == 1:
                    self._lower()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if sys.platform == "linux":
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    resource.setrlimit(resource.RLIMIT_AS, ALLOWED)

    def _lower(self) -> None:
        self._age += 1
        if self._age > WORKS_BETWEEN_LOOKS:
            with open("/proc/self/statm", encoding="ascii") as sizes:
                pages = int(sizes.read().partition(" ")[0])
            self._limit = pages * resource.getpagesize() + MEMORY_BYTES
            self._age = 0
        soft, hard = ALLOWED
        if soft == resource.RLIM_INFINITY or self._limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (self._limit, hard))


if sys.platform == "linux":
    import resource

    ALLOWED = resource.getrlimit(resource.RLIMIT_AS)
