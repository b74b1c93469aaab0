"""What a scorer of answers is: it scores one answer at a time.

A score is Σ numerator ÷ Σ denominator over the rows. Means and shares (denominator 1), losses by
token, precision (numerator: right claims, denominator: claims) and micro-F1 (numerator: 2·hits,
denominator: found + wanted) are all of this kind, so one bootstrap over rows serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from ftcli.runs.results import Finding as Finding

Better = Literal["higher", "lower"]
# A share is shown in percent, a value with two decimals, a perplexity as the exponential of a loss.
Unit = Literal["share", "value", "perplexity"]


@dataclass(frozen=True)
class ScoreKind:
    """What a score is called, how it is shown, and which way is better (none: neither)."""

    label: str
    unit: Unit
    better: Better | None


@dataclass(frozen=True)
class Question:
    """What was asked of a model in one held-out row."""

    prompt: str
    """The last user turn."""
    reference: str
    """The row's own answer."""
    facts: str
    """What an answer may state: all user turns, or the part of them that the recipe names."""
    conversation: str = ""
    """All turns before the answer, the system turn among them; empty: the prompt is all."""


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
        """Every score it may count, in the order in which they are shown."""

    def score(self, answer: str, question: Question) -> ExampleResult:
        """Counts and findings; never raises, whatever the answer is."""
