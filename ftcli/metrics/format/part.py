"""What a form is made of: parts, each of which looks at the whole answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ftcli.metrics.scorer import Finding, Question, ScoreKind


@dataclass(frozen=True)
class Seen:
    """What one part of the form says of one answer."""

    holds: bool
    counts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


class Part(Protocol):
    """One thing that the form asks for."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """Every score it may count, in the order in which they are shown."""

    def look(self, answer: str, question: Question) -> Seen:
        """Whether the answer has it; raises only what a text without end may cause."""


def share(label: str) -> ScoreKind:
    """A share of which more is better."""
    return ScoreKind(label, "share", "higher")


def hit(found: object) -> tuple[float, float]:
    """What one answer adds to a share of answers."""
    return (1.0 if found else 0.0), 1.0


# Characters of a value or an error that a finding shows.
MOST_SHOWN = 120


def shown(value: str) -> str:
    return value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}…"
