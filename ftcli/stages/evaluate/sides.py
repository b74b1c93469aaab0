"""One side of an evaluation: what a model did with the rows, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftcli.metrics.likelihood import Scored
from ftcli.metrics.scorer import Finding, Question, ScoreKind
from ftcli.metrics.scores import Counts, Difference, compared, mean_of, with_interval
from ftcli.stages.evaluate.scorers import Scorers
from ftcli.stages.evaluate.work import Done


@dataclass(frozen=True)
class Side:
    """The base, the base with a long prompt, or the tuned model."""

    done: Done
    counts: Mapping[str, Counts]
    findings: Sequence[Sequence[Finding]]
    """Of each row's answer."""

    def as_json(self) -> dict[str, Any]:
        """Every score with its interval, and what a call takes."""
        scores: dict[str, Any] = {}
        for name, counts in self.counts.items():
            low, high = counts.interval()
            scores |= with_interval(name, counts.value, (low, high))
            if name == "loss":
                bounds = (math.exp(low), math.exp(high))
                scores |= with_interval("perplexity", math.exp(counts.value), bounds)
        if self.done.prompt_tokens:
            scores["prompt_tokens"] = sum(self.done.prompt_tokens) / len(self.done.prompt_tokens)
            scores["tokens_per_second"] = self.done.tokens_per_second
        return scores

    def counted(self) -> dict[str, dict[str, Any]]:
        """Of each score: how many rows count, and whether each of them is a hit or a miss."""
        return {
            name: {"rows": counts.rows, "hits": counts.are_hits}
            for name, counts in self.counts.items()
        }


def side_of(
    done: Done, questions: Sequence[Question], judges: Scorers, moved: Callable[[int], None]
) -> Side:
    """Count everything there is to count in one model's losses and answers."""
    counts = {"loss": loss_counts(done.scored)}
    findings: Sequence[Sequence[Finding]] = [()] * len(questions)
    if done.answers:
        counts["stop_rate"] = mean_of([answer.stopped for answer in done.answers])
        looked = judges.look(done.answers, questions, moved)
        counts |= looked.counts
        findings = looked.findings
        counts["answer_tokens"] = mean_of([answer.tokens for answer in done.answers])
    return Side(done, counts, findings)


def loss_counts(scored: Scored) -> Counts:
    return Counts(scored.losses, tuple(float(tokens) for tokens in scored.tokens))


def differences(
    first: Side, second: Side, kinds: Mapping[str, ScoreKind]
) -> dict[str, dict[str, Any]]:
    """The second side less the first, score by score; perplexity is told by the loss."""
    found: dict[str, dict[str, Any]] = {}
    for name, kind in kinds.items():
        ours, theirs = first.counts.get(name), second.counts.get(name)
        if ours is None or theirs is None or _of_other_tokens(name, ours, theirs):
            continue
        difference = compared(ours, theirs, kind.better)
        if difference is not None:
            found[name] = difference_json(difference)
    return found


def _of_other_tokens(name: str, ours: Counts, theirs: Counts) -> bool:
    """A long prompt holds the earlier answers of a conversation, which are scored without it."""
    return name == "loss" and ours.bottoms != theirs.bottoms


def difference_json(found: Difference) -> dict[str, Any]:
    return {
        "difference": found.value,
        "interval": list(found.interval),
        "rows": found.rows,
        "verdict": found.word,
        "words": found.words,
        "rows_to_show": found.rows_to_show,
        "same": found.same,
    }
