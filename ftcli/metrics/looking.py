"""Every judge on every answer of one side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ftcli.metrics.answer import Answer
from ftcli.metrics.scorer import ExampleResult, Finding, Question, Scorer
from ftcli.metrics.scores import Counts, gathered


@dataclass(frozen=True)
class Looked:
    """Counts by score, and findings row by row."""

    counts: Mapping[str, Counts]
    findings: Sequence[Sequence[Finding]]


def look(
    judges: Sequence[Scorer],
    answers: Sequence[Answer],
    questions: Sequence[Question],
    moved: Callable[[int], None],
) -> Looked:
    """What the judges say of answers to these questions; `moved` is told how many are done."""
    said: list[list[ExampleResult]] = []
    for answer, question in zip(answers, questions, strict=True):
        said.append([judge.score(answer.text, question) for judge in judges])
        moved(len(said))
    counts: dict[str, Counts] = {}
    for judge, judgements in zip(judges, zip(*said, strict=True), strict=True):
        # A judge may know its scores only once it has seen every question.
        counts |= gathered(judgements, judge.kinds)
    findings = [[finding for each in row for finding in each.findings] for row in said]
    return Looked(counts, findings)
