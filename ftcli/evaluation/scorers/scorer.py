"""The interface of scorers: they score one answer at a time.

A score is Σ numerator ÷ Σ denominator over the rows. Means and proportions (denominator 1), losses
per token, precision (right claims ÷ claims) and micro-F1 (2·hits ÷ (found + wanted)) all have this
form, so that one bootstrap over rows serves all.
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
from ftcli.runs.results import Better
from ftcli.runs.results import Finding as Finding

# A share is shown in percent, a value with two decimals, a loss of `perplexity` as its exponential.
Unit = Literal["share", "value", "perplexity"]
# CPU time for one answer; most take a thousandth of it.
TIME_LIMIT_SECONDS = 5.0
# A library may swallow the first signal.
SECONDS_BETWEEN_SIGNALS = 1.0


@dataclass(frozen=True)
class ScoreKind:
    """The label and unit of a score, and which direction is better (None: neither)."""

    label: str
    unit: Unit
    better: Better | None


@dataclass(frozen=True)
class Question:
    """What a held-out row asks."""

    prompt: str
    """The last user turn."""
    reference: str
    """The row's own answer."""
    facts: str
    """What an answer may state: all user turns, or what `eval.grounding.facts` finds in them."""
    conversation: str = ""
    """All turns before the answer, the system turn included; empty: only the prompt."""


@dataclass(frozen=True)
class ExampleResult:
    """The scores of one answer, and its faults."""

    counts: Mapping[str, tuple[float, float]]
    """Name of a score → numerator and denominator of this answer."""
    findings: tuple[Finding, ...] = ()


class Scorer(Protocol):
    """Scores answers, one at a time."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """Every score that it may give, in the order of the table."""

    def score(self, answer: str, question: Question) -> ExampleResult:
        """Never raises, whatever the answer is."""


class TimeIsUp(BaseException):
    """A BaseException, so that no library catches it."""


@contextmanager
def time_limit(seconds: float = TIME_LIMIT_SECONDS) -> Iterator[None]:
    """Raise TimeIsUp after this CPU time: the user's patterns and schemas may never end.

    Python's `re` and SQLite's progress handler let signals through. No limit outside the main
    thread, which alone receives signals, and on Windows, which has no such timer.
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
    finally:  # also if the time is up in the line above
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@cache
def code_digest() -> str:
    """sha256 of the version and of this package's code and data: it invalidates stored scores."""
    found = hashlib.sha256(__version__.encode())
    for file in sorted(Path(__file__).parents[1].rglob("*")):
        if file.suffix in (".py", ".txt", ".jsonl"):
            found.update(file.read_bytes())
    return found.hexdigest()
