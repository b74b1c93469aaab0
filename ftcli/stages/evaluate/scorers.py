"""Which scorers an evaluation uses, and every answer scored by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ftcli.errors import did_you_mean
from ftcli.metrics.answer import Answer
from ftcli.metrics.format import FormatScorer, format_files, format_scorer
from ftcli.metrics.grounding import GroundingScorer, grounding_files
from ftcli.metrics.grounding.facts import facts_of
from ftcli.metrics.scorer import ExampleResult, Question, ScoreKind, Scorer
from ftcli.metrics.scores import Counts, gathered
from ftcli.metrics.text import TextScorer
from ftcli.stages.evaluate.asked import Asked
from ftcli.stages.evaluate.custom import CustomScorer, custom_scorer
from ftcli.stages.evaluate.streamed import turns_of
from ftcli.stages.opening import OpenRun

# Training rows that the vocabulary of a task is learnt from.
VOCABULARY_ROWS = 5_000
RESERVED = {
    "loss",
    "perplexity",
    "stop_rate",
    "answer_tokens",
    "prompt_tokens",
    "tokens_per_second",
}
# Where so few of the rows' own answers have the form, a model cannot have learnt it from them.
LEAST_IN_FORM = 0.5


@dataclass(frozen=True)
class ScoredSide:
    """Every answer of one side scored."""

    results: Sequence[ExampleResult]
    """Row by row, of all scorers together."""
    counts: Mapping[str, Counts]


class Scorers:
    """Every scorer of one evaluation."""

    def __init__(self, opened: OpenRun, asked: Asked) -> None:
        """Raises FtcliError where what the recipe or a flag names cannot be used."""
        wanted, base = opened.loaded.recipe.eval, opened.loaded.base
        self._form: FormatScorer | None = None
        self._wanted = wanted
        self._of_answers: list[Scorer] = []
        self.own: CustomScorer | None = None
        self.files: list[Path] = []
        """What the scores depend on besides recipe and answers."""
        if wanted.format is not None:
            self.files += format_files(wanted.format, base)
            self._form = format_scorer(wanted.format, base)
            self._of_answers.append(self._form)
        if wanted.grounding is not None:
            self.files += grounding_files(wanted.grounding, base)
            self._of_answers.append(GroundingScorer(wanted.grounding, base, training_pairs(opened)))
        if asked.scores is not None:
            self.own = custom_scorer(asked.scores, {*self.kinds, *RESERVED})
            self._of_answers.append(self.own)

    @property
    def kinds(self) -> dict[str, ScoreKind]:
        """Every score of an answer, in the order in which it is shown."""
        found: dict[str, ScoreKind] = {}
        for scorer in (*self._of_answers, TextScorer()):
            found |= scorer.kinds
        return found

    def score(
        self, answers: Sequence[Answer], questions: Sequence[Question], done: Callable[[int], None]
    ) -> ScoredSide:
        """One side's answers; `done` is called with the number of rows scored so far."""
        scorers = [*self._of_answers, TextScorer()]
        return _scored(scorers, [answer.text for answer in answers], questions, done)

    def your_answers(self, questions: Sequence[Question]) -> Mapping[str, Counts]:
        """The rows' own answers, by the scores that do not compare with them."""
        references = [question.reference for question in questions]
        return _scored(self._of_answers, references, questions, lambda _: None).counts

    def warnings(self, questions: Sequence[Question], own: Mapping[str, Counts]) -> Iterator[str]:
        """Settings of `eval` that nothing in the rows answers to, and scores that cannot be had."""
        if self._form is not None:
            yield from self._form.warnings()
            form = own.get("format_rate")
            if form is not None and form.value < LEAST_IN_FORM:
                hits = round(sum(form.numerators))
                yield f"eval.format: {hits} of {form.n} of your own answers have that form"
        if (grounding := self._wanted.grounding) is None:
            return
        if grounding.facts is not None:
            unfound = sum(
                question.prompt in question.facts
                and re.search(grounding.facts, question.facts) is None
                for question in questions
            )
            if unfound:
                yield (
                    f"eval.grounding.facts: found nothing in {unfound} of {len(questions)} "
                    "prompts, whose facts are the whole prompt"
                )
        keys = {fact.key for question in questions for fact in facts_of(question.facts)}
        for name in grounding.optional:
            if name.casefold() not in {key.casefold() for key in keys}:
                hint = did_you_mean(name, keys)
                yield f"eval.grounding.optional: no row has a fact {name!r}{hint}"


def training_pairs(opened: OpenRun) -> Iterator[tuple[str, str]]:
    """Prompts (all user turns) and answers of the first training rows."""
    for turns in islice(turns_of(opened, "train"), VOCABULARY_ROWS):
        if turns:
            asked = [turn.content for turn in turns[:-1] if turn.role == "user"]
            yield "\n\n".join(asked), turns[-1].content


def _scored(
    scorers: Sequence[Scorer],
    answers: Sequence[str],
    questions: Sequence[Question],
    done: Callable[[int], None],
) -> ScoredSide:
    results = []
    for answer, question in zip(answers, questions, strict=True):
        found = [scorer.score(answer, question) for scorer in scorers]
        counts = {name: pair for each in found for name, pair in each.counts.items()}
        findings = tuple(finding for each in found for finding in each.findings)
        results.append(ExampleResult(counts, findings))
        done(len(results))
    # A scorer may know its scores only once it has seen every question.
    kinds = {name: kind for scorer in scorers for name, kind in scorer.kinds.items()}
    return ScoredSide(results, gathered(results, kinds))
