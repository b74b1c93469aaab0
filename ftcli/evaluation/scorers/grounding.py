"""The scorer that `eval.grounding` asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ftcli.config.grounding import Grounding
from ftcli.console import shown_path
from ftcli.errors import DataError
from ftcli.evaluation.scorers.facts import facts_of, mentioned
from ftcli.evaluation.scorers.scorer import ExampleResult, Finding, Question, ScoreKind
from ftcli.evaluation.scorers.time_limit import SECONDS, TimeIsUp, within
from ftcli.evaluation.scorers.vocabulary import Token, Vocabulary, tokens_in

NOT_IN_PROMPT = ScoreKind("terms not in the prompt", "share", None)
COVERAGE = ScoreKind("facts mentioned", "share", "higher")
BANNED = ScoreKind("has a banned phrase", "share", "lower")
# Longer answers and prompts are read to here.
LONGEST = 200_000


class GroundingScorer:
    """Counts answers with numbers, names or terms that their prompts do not have, the facts that
    answers mention, and answers with a banned phrase."""

    def __init__(self, wanted: Grounding, base: Path, training: Iterable[tuple[str, str]]) -> None:
        """`training`: the prompts and answers that the vocabulary is learnt from; `base`: the
        recipe's folder.

        Raises DataError (`banned_phrases`, `facts_expression`).
        """
        pairs = ((facts_text(wanted, prompt), answer) for prompt, answer in training)
        self._vocabulary = Vocabulary.learn(pairs, wanted.language)
        self._optional = wanted.optional
        self._allowed = [self._stems(tokens_in(phrase)) for phrase in wanted.allowed]
        self._banned = {
            phrase: self._stems(tokens_in(phrase)) for phrase in _banned_phrases(wanted, base)
        }

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        found = {"not_in_prompt": NOT_IN_PROMPT, "coverage": COVERAGE}
        return {**found, "banned_phrases": BANNED} if self._banned else found

    def score(self, answer: str, question: Question) -> ExampleResult:
        answer, facts = answer[:LONGEST], question.facts[:LONGEST]
        allowed = [span for phrase in self._allowed for span in self._places(phrase, answer)]
        found = self._vocabulary.not_in(self._vocabulary.facts(facts), answer)
        marked = [each for each in found if not any(_overlap(each, span) for span in allowed)]
        # Each word once, where it stands first.
        findings = list({each.message: each for each in reversed(marked)}.values())[::-1]
        counts = {"not_in_prompt": (float(bool(findings)), 1.0)}
        if items := facts_of(facts, self._optional):
            left_out = [fact for fact in items if not mentioned(fact, answer, self._vocabulary)]
            counts["coverage"] = (float(len(items) - len(left_out)), float(len(items)))
            findings += [Finding("not mentioned", f"{f.key}: {f.value}") for f in left_out]
        if self._banned:
            hits = list(self._banned_in(answer))
            counts["banned_phrases"] = (float(bool(hits)), 1.0)
            findings += hits
        return ExampleResult(counts, tuple(findings))

    def _stems(self, tokens: Sequence[Token]) -> list[str]:
        return [self._vocabulary.language.stem(token.text) for token in tokens]

    def _places(self, phrase: Sequence[str], answer: str) -> Iterator[tuple[int, int]]:
        """Where the words of a phrase follow each other, whatever their endings."""
        tokens = tokens_in(answer)
        stems = self._stems(tokens)
        for first in range(len(stems) - len(phrase) + 1 if phrase else 0):
            if stems[first : first + len(phrase)] == phrase:
                yield tokens[first].start, tokens[first + len(phrase) - 1].end

    def _banned_in(self, answer: str) -> Iterator[Finding]:
        for phrase, stems in self._banned.items():
            for start, end in self._places(stems, answer):
                yield Finding("banned phrase", f"“{phrase}”", start, end)


def _overlap(finding: Finding, span: tuple[int, int]) -> bool:
    assert finding.start is not None and finding.end is not None
    return finding.start < span[1] and span[0] < finding.end


def facts_text(wanted: Grounding | None, prompt: str) -> str:
    """The facts in all user turns of a row: what the recipe's expression finds, else all of it.

    Raises DataError (`facts_expression`) for an expression that takes too long.
    """
    if wanted is None or wanted.facts is None:
        return prompt
    try:
        with within():
            found = re.search(wanted.facts, prompt)
    except TimeIsUp as error:
        message = (
            f"eval.grounding.facts: {wanted.facts!r} took more than {SECONDS:.0f} s over one "
            f"prompt of {len(prompt):,} characters; write it without repeats inside repeats"
        )
        raise DataError("facts_expression", message) from error
    if found is None:
        return prompt
    return (found["facts"] if "facts" in found.re.groupindex else found[0]) or ""


def _banned_phrases(wanted: Grounding, base: Path) -> list[str]:
    if not isinstance(wanted.banned, str):
        return wanted.banned
    file = base / wanted.banned
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        message = f"eval.grounding.banned: {why}; it holds one phrase a line"
        raise DataError("banned_phrases", message, file=shown_path(file)) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
