"""What a scorer of answers is: it scores one answer at a time.

A score is Σ numerator ÷ Σ denominator over the rows. Means and shares (denominator 1), losses by
token, precision (numerator: right claims, denominator: claims) and micro-F1 (numerator: 2·hits,
denominator: found + wanted) all have this form, so that one bootstrap over rows serves all.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

from ftcli import __version__
from ftcli.runs.results import Finding as Finding

Better = Literal["higher", "lower"]
# A share is shown in percent, a value with two decimals, a perplexity as the exponential of a loss.
Unit = Literal["share", "value", "perplexity"]
# For one answer; ordinary ones take a thousandth of it.
TIME_LIMIT_SECONDS = 5.0
# A library may swallow the first signal.
SECONDS_BETWEEN_SIGNALS = 1.0


@dataclass(frozen=True)
class ScoreKind:
    """How a score is called and shown, and which way is better (None: neither)."""

    label: str
    unit: Unit
    better: Better | None


@dataclass(frozen=True)
class Question:
    """What a model was asked in one held-out row."""

    prompt: str
    """The last user turn."""
    reference: str
    """The row's own answer."""
    facts: str
    """What an answer may state: all user turns, or the part of them that the recipe names."""
    conversation: str = ""
    """All turns before the answer, with the system turn; empty: the prompt alone."""


@dataclass(frozen=True)
class ExampleResult:
    """The scores of one answer, and what is wrong with it."""

    counts: Mapping[str, tuple[float, float]]
    """Name of a score → what this answer adds to its numerator and to its denominator."""
    findings: tuple[Finding, ...] = ()


class Scorer(Protocol):
    """Scores answers, one at a time."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """Every score it may count, in the order of the table."""

    def score(self, answer: str, question: Question) -> ExampleResult:
        """Counts and findings; never raises, whatever the answer is."""


class TimeIsUp(BaseException):
    """Not an Exception, so that no library catches it."""


@contextmanager
def time_limit(seconds: float = TIME_LIMIT_SECONDS) -> Iterator[None]:
    """Raise TimeIsUp after so many CPU seconds of this process: patterns and schemas are the
    user's.

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
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, SECONDS_BETWEEN_SIGNALS)
        try:
            yield
        finally:
            working = False
    finally:  # also where the time is up in the line above
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@cache
def code_digest() -> str:
    """sha256 of this room's code and data and of the version: stored scores are valid only while
    it is the same."""
    found = hashlib.sha256(__version__.encode())
    for file in sorted(Path(__file__).parents[1].rglob("*")):
        if file.suffix in (".py", ".txt", ".jsonl"):
            found.update(file.read_bytes())
    return found.hexdigest()
