"""`eval.grounding`: terms of an answer that are not in its prompt, facts that it mentions, and
banned phrases. Facts are `Key: value` lines of the prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.config.evaluation import Grounding
from ftcli.console import shown_path
from ftcli.data.example import Message
from ftcli.errors import DataError
from ftcli.evaluation.scorers.scorer import (
    TIME_LIMIT_SECONDS,
    ExampleResult,
    Finding,
    Question,
    ScoreKind,
    TimeIsUp,
    time_limit,
)
from ftcli.evaluation.scorers.vocabulary import (
    Token,
    Vocabulary,
    letters_and_digits,
    tokens_in,
)

NOT_IN_PROMPT = ScoreKind("terms not in the prompt", "share", None)
COVERAGE = ScoreKind("facts mentioned", "share", "higher")
BANNED = ScoreKind("has a banned phrase", "share", "lower")
# Longer answers and prompts are cut.
MAX_CHARACTERS = 200_000
KEY_LINE = re.compile(r"^[ \t]*(?:[-*•][ \t]*)?([^\W\d_][^:\n]{0,40}?)[ \t]*:[ \t]+(\S.*)$", re.M)
# Between items of a list; not the comma within 1,299.
SEPARATOR = re.compile(r";|,(?!\d)|(?<!\d),")
# A value with more words is a sentence.
MAX_WORDS = 12
YES, NO = {"yes", "true", "included"}, {"no", "false", "none", "n/a"}
# An answer mentions a value with this share of its words: "felt pads" mentions "felt foot pads".
MENTIONED_SHARE = 2 / 3


class GroundingScorer:
    """Counts answers with terms that are not in their prompts, facts that they mention, and answers
    with banned phrases."""

    def __init__(self, wanted: Grounding, training: Iterable[tuple[str, str]]) -> None:
        """`training`: prompts and answers to learn the vocabulary from.

        Raises DataError (`banned_phrases`, `facts_expression`).
        """
        pairs = ((facts_text(wanted, prompt), answer) for prompt, answer in training)
        self._vocabulary = Vocabulary.learn(pairs, wanted.language)
        self._optional = wanted.optional
        self._allowed = [self._stems(tokens_in(phrase)) for phrase in wanted.allowed]
        self._banned = {
            phrase: self._stems(tokens_in(phrase)) for phrase in _banned_phrases(wanted)
        }

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        found = {"not_in_prompt": NOT_IN_PROMPT, "coverage": COVERAGE}
        return {**found, "banned_phrases": BANNED} if self._banned else found

    def score(self, answer: str, question: Question) -> ExampleResult:
        answer, facts = answer[:MAX_CHARACTERS], question.facts[:MAX_CHARACTERS]
        allowed = [span for phrase in self._allowed for span in self._places(phrase, answer)]
        found = self._vocabulary.not_in(self._vocabulary.facts(facts), answer)
        flagged = [each for each in found if not any(_overlap(each, span) for span in allowed)]
        # Each word once, at its first place.
        findings = list({each.message: each for each in reversed(flagged)}.values())[::-1]
        counts = {"not_in_prompt": (float(bool(findings)), 1.0)}
        if items := facts_of(facts, self._optional):
            left_out = [fact for fact in items if not mentioned(fact, answer, self._vocabulary)]
            counts["coverage"] = (float(len(items) - len(left_out)), float(len(items)))
            findings += [Finding("not mentioned", f"{f.key}: {f.value}") for f in left_out]
        if self._banned:
            hits = [
                Finding("banned phrase", f"“{phrase}”", start, end)
                for phrase, stems in self._banned.items()
                for start, end in self._places(stems, answer)
            ]
            counts["banned_phrases"] = (float(bool(hits)), 1.0)
            findings += hits
        return ExampleResult(counts, tuple(findings))

    def _stems(self, tokens: Sequence[Token]) -> list[str]:
        return [self._vocabulary.language.stem(token.text) for token in tokens]

    def _places(self, phrase: Sequence[str], answer: str) -> Iterator[tuple[int, int]]:
        """Where the stems of a phrase follow each other."""
        tokens = tokens_in(answer)
        stems = self._stems(tokens)
        for first in range(len(stems) - len(phrase) + 1 if phrase else 0):
            if stems[first : first + len(phrase)] == phrase:
                yield tokens[first].start, tokens[first + len(phrase) - 1].end


def _overlap(finding: Finding, span: tuple[int, int]) -> bool:
    assert finding.start is not None and finding.end is not None
    return finding.start < span[1] and span[0] < finding.end


def _banned_phrases(wanted: Grounding) -> list[str]:
    if not isinstance(wanted.banned, str):
        return wanted.banned
    file = Path(wanted.banned)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        message = f"eval.grounding.banned: {why}; expected one phrase per line"
        raise DataError("banned_phrases", message, file=shown_path(file)) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def question_of(turns: Sequence[Message], wanted: Grounding | None) -> Question:
    """The question of a row, whose last turn is its answer; empty for a plain text.

    Any user turn may have facts: the last may be "Shorter, please.". Raises DataError
    (`facts_expression`).
    """
    before = turns[:-1]
    asked = [turn.content for turn in before if turn.role == "user"]
    return Question(
        prompt=asked[-1] if asked else "",
        reference=turns[-1].content if turns else "",
        facts=facts_text(wanted, "\n\n".join(asked)),
        conversation="\n\n".join(turn.content for turn in before),
    )


def facts_text(wanted: Grounding | None, prompt: str) -> str:
    """The part of a prompt that the recipe's expression matches, else the whole prompt.

    Raises DataError (`facts_expression`) for an expression that takes too long.
    """
    if wanted is None or wanted.facts is None:
        return prompt
    try:
        with time_limit():
            found = re.search(wanted.facts, prompt)
    except TimeIsUp as error:
        message = (
            f"eval.grounding.facts: {wanted.facts!r} took more than {TIME_LIMIT_SECONDS:.0f} s "
            f"on a prompt of {len(prompt):,} characters; write it without nested repeats"
        )
        raise DataError("facts_expression", message) from error
    if found is None:
        return prompt
    return (found["facts"] if "facts" in found.re.groupindex else found[0]) or ""


@dataclass(frozen=True)
class Fact:
    """A value, or one item of a list."""

    key: str
    value: str


def facts_of(text: str, optional: Collection[str] = ()) -> list[Fact]:
    """Facts of a text, without `optional` keys; none of prose or a conversation."""
    lines = [(key.strip(" *"), value.strip(" *")) for key, value in KEY_LINE.findall(text)]
    keys = {key.casefold() for key, _ in lines}
    sentences = sum(len(value.split()) > MAX_WORDS for _, value in lines)
    if len(keys) < len(lines) or 2 * sentences > len(lines):
        return []
    left_out = {key.casefold() for key in optional}
    found = []
    for key, value in lines:
        if key.casefold() not in left_out and value.casefold() not in NO:
            parts = value.split(";") if ";" in value else SEPARATOR.split(value)
            found += [Fact(key, part.strip()) for part in parts if part.strip()]
    return found


def mentioned(fact: Fact, answer: str, vocabulary: Vocabulary) -> bool:
    """Whether an answer has the fact's numbers and, in one sentence, most of its words."""
    value = fact.key if fact.value.casefold() in YES else fact.value
    language = vocabulary.language
    numbers = language.values(answer)
    words = set()
    for token in tokens_in(value):
        values = language.values(token.text)
        if values and not values & numbers:
            return False
        if not values:
            words.add(language.stem(token.text))
    words = {word for word in words if not vocabulary.is_common(word)} or words
    needed = len(words) if len(words) < 3 else math.ceil(MENTIONED_SHARE * len(words))
    sentence: set[str] = set()
    most = 0
    for token in tokens_in(answer):
        sentence = set() if token.starts_sentence else sentence
        sentence.add(language.stem(token.text))
        most = max(most, len(words & sentence))
    return most >= needed or letters_and_digits(value) in letters_and_digits(answer)
