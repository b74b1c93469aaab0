"""What a judge of answers is: it looks at one answer at a time and counts.

A score is Σ top ÷ Σ bottom over the rows. Means and shares (bottom 1), losses by token, precision
(top: right claims, bottom: claims) and micro-F1 (top: 2·hits, bottom: found + wanted) are all of
this kind, so one bootstrap over rows serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Better = Literal["higher", "lower"]
# A share is shown in percent, a value with two decimals.
Unit = Literal["share", "value"]
# Scores by lists of words, which find few of the wrong answers (docs/faithfulness.md): shown beside
# the rate of the data's own answers, and no verdict's ground. `claims_supported`: of before.
BY_WORDS = {"invents", "claims_supported"}


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
class Finding:
    """Something wrong with one answer."""

    kind: str
    """`number not in the prompt`, `banned claim`, `not JSON`, …"""
    message: str
    start: int | None = None
    """Characters [start, end) of the answer that prove it; none: it is in no one place."""
    end: int | None = None


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one answer."""

    counts: Mapping[str, tuple[float, float]]
    """Name of a score → what this answer adds to its top and its bottom."""
    findings: tuple[Finding, ...] = ()


class Judge(Protocol):
    """Looks at answers, one at a time."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """Every score it may count, in the order in which they are shown."""

    def judge(self, answer: str, question: Question) -> Judgement:
        """Counts and findings; never raises, whatever the answer is."""
