"""Which scorers an evaluation uses, and every answer scored by them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ftcli.console import Reporter
from ftcli.errors import did_you_mean
from ftcli.evaluation.calibration import CheckerName, agreement, read_labels
from ftcli.evaluation.custom import CustomScorer, custom_scorer
from ftcli.evaluation.judge import JudgeScorer
from ftcli.evaluation.rows import stream_turns
from ftcli.evaluation.scorers.facts import facts_of
from ftcli.evaluation.scorers.format import FormatScorer, format_scorer
from ftcli.evaluation.scorers.grounding import GroundingScorer
from ftcli.evaluation.scorers.scorer import ExampleResult, Finding, Question, ScoreKind, Scorer
from ftcli.evaluation.scorers.text import TextScorer
from ftcli.evaluation.scores import Counts, score_answers
from ftcli.runs.results import Side
from ftcli.training.opening import OpenRun

if TYPE_CHECKING:
    from ftcli.evaluation.scorers.span_detector import SpanDetector

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
# A greater share of repeated groups of words is said below the table.
MOST_REPEATED = 0.05
# Where so few of the rows' own answers have the form, a model cannot have learnt it from them.
LEAST_IN_FORM = 0.5


@dataclass(frozen=True)
class ScoredSides:
    """The answers of all sides scored, and the rows' own; of plain texts nothing."""

    results: Mapping[Side, Sequence[ExampleResult]] = field(default_factory=dict)
    counts: Mapping[Side, Mapping[str, Counts]] = field(default_factory=dict)
    your_answers: Mapping[str, Counts] = field(default_factory=dict)
    """By the scores that do not compare with them."""
    notes: tuple[str, ...] = ()
    """Sentences below the table."""


class Scorers:
    """Every scorer of one evaluation."""

    def __init__(self, opened: OpenRun, scores: Path | None, reporter: Reporter) -> None:
        """`scores`: a file of the user's own. Raises FtcliError where what the recipe or a flag
        names cannot be used."""
        wanted, base = opened.loaded.recipe.eval, opened.loaded.base
        self._wanted, self._reporter = wanted, reporter
        self._form: FormatScorer | None = None
        self._judge: JudgeScorer | None = None
        self._checkers: dict[CheckerName, tuple[DetectorScorer | JudgeScorer, Path | None]] = {}
        """Each with the file of the user's labels that its agreement is measured by."""
        self._custom: CustomScorer | None = None
        self._of_answers: list[Scorer] = []
        """Without the scores that compare with the rows' own answers."""
        if wanted.format is not None:
            self._form = format_scorer(wanted.format, base)
            self._of_answers.append(self._form)
        if wanted.grounding is not None:
            self._of_answers.append(GroundingScorer(wanted.grounding, base, training_pairs(opened)))
            if wanted.grounding.model is not None:
                detector = DetectorScorer(opened, wanted.grounding.model)
                self._of_answers.append(detector)
                labels = wanted.grounding.labels
                self._checkers["detector"] = (detector, base / labels if labels else None)
        if wanted.judge is not None:
            self._judge = JudgeScorer(wanted.judge, opened.run.evaluations)
            self._of_answers.append(self._judge)
            labels = wanted.judge.labels
            self._checkers["judge"] = (self._judge, base / labels if labels else None)
        if scores is not None:
            self._custom = custom_scorer(scores, {*self.kinds, *RESERVED})
            self._of_answers.append(self._custom)

    @property
    def kinds(self) -> dict[str, ScoreKind]:
        """Every score of an answer, in the order in which it is shown."""
        found: dict[str, ScoreKind] = {}
        for scorer in (*self._of_answers, TextScorer()):
            found |= scorer.kinds
        return found

    @property
    def own(self) -> set[str]:
        """Scores of the user's own file."""
        return set(self._custom.kinds) if self._custom is not None else set()

    def score(self, texts: Mapping[Side, Sequence[str]], asked: Sequence[Question]) -> ScoredSides:
        """Every answer of every side. Raises FtcliError where a judge does not answer."""
        if not texts:
            return ScoredSides()
        results: dict[Side, Sequence[ExampleResult]] = {}
        counts: dict[Side, dict[str, Counts]] = {}
        for side, answers in texts.items():
            self._ask_judge(side, answers, asked)
            with self._reporter.meter(f"{side}: scores", len(answers)) as meter:
                scorers = [*self._of_answers, TextScorer()]
                scored = score_answers(scorers, answers, asked, meter.update)
            results[side], counts[side] = scored.results, dict(scored.counts)
        references = [question.reference for question in asked]
        self._ask_judge("your answers", references, asked)
        own = score_answers(self._of_answers, references, asked, lambda _: None).counts
        if self._judge is not None and self._judge.compares and "base" in texts:
            pairs = list(zip(texts["base"], texts["tuned"], asked, strict=True))
            for side, wins in self._preferred(self._judge, pairs).items():
                if wins.n:
                    counts[side]["judge_preferred"] = wins
        for warning in self._warnings(asked, own):
            self._reporter.warn(warning)
        notes = (*_repetition(counts["tuned"]), *self._calibrations())
        return ScoredSides(results, counts, own, notes)

    def _ask_judge(self, label: str, texts: Sequence[str], asked: Sequence[Question]) -> None:
        if (judge := self._judge) is not None:
            pairs = zip(texts, asked, strict=True)
            requests = [judge.supported_request(*pair) for pair in pairs]
            with self._reporter.meter(f"judge: {label}", len(requests)) as meter:
                judge.prepare(requests, meter.update)

    def _preferred(
        self, judge: JudgeScorer, pairs: Sequence[tuple[str, str, Question]]
    ) -> dict[Side, Counts]:
        """How often the judge prefers the first answer of a pair, the base's, or the second."""
        with self._reporter.meter("judge: pairs", len(pairs)) as meter:
            judge.prepare([judge.pair_request(*pair)[0] for pair in pairs], meter.update)
        wins = [judge.preferred(*pair) for pair in pairs]
        counted = tuple(float(win is not None) for win in wins)
        tuned = tuple(win or 0.0 for win in wins)
        base = tuple(all_of - part for all_of, part in zip(counted, tuned, strict=True))
        return {"base": Counts(base, counted), "tuned": Counts(tuned, counted)}

    def _calibrations(self) -> Iterator[str]:
        """How often detector and judge agree with the user's own labels, in words."""
        for name, (checker, file) in self._checkers.items():
            labels = read_labels(file)
            answers = [label.answer for label in labels]
            asked = [label.question(self._wanted.grounding) for label in labels]
            if checker is self._judge:
                self._ask_judge("your labels", answers, asked)
            verdicts = [checker.verdict(*pair) for pair in zip(answers, asked, strict=True)]
            yield agreement(name, labels, verdicts)
            yield from checker.notes()

    def _warnings(self, asked: Sequence[Question], own: Mapping[str, Counts]) -> Iterator[str]:
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
                for question in asked
            )
            if unfound:
                yield (
                    f"eval.grounding.facts: found nothing in {unfound} of {len(asked)} "
                    "prompts, whose facts are the whole prompt"
                )
        keys = {fact.key for question in asked for fact in facts_of(question.facts)}
        for name in grounding.optional:
            if name.casefold() not in {key.casefold() for key in keys}:
                hint = did_you_mean(name, keys)
                yield f"eval.grounding.optional: no row has a fact {name!r}{hint}"


def _repetition(tuned: Mapping[str, Counts]) -> Iterator[str]:
    score = tuned.get("repetition")
    if score is not None and score.value > MOST_REPEATED:
        yield (
            f"the tuned model repeats itself: {score.value:.0%} of its groups of four words "
            "stood before in the same answer"
        )


@dataclass
class DetectorScorer:
    """Counts answers in which the detector marks no span."""

    kinds = MappingProxyType(
        {"spans_supported": ScoreKind("supported (detector)", "share", "higher")}
    )

    opened: OpenRun
    model_id: str

    @cached_property
    def _model(self) -> SpanDetector:
        from ftcli.evaluation.scorers.span_detector import SpanDetector
        from ftcli.models.device import hardware_for

        loaded = self.opened.loaded
        return SpanDetector(self.model_id, loaded.base, hardware_for(loaded))

    def score(self, answer: str, question: Question) -> ExampleResult:
        found = [
            Finding("not supported (detector)", f"“{answer[start:end]}”", start, end)
            for start, end in self._model.spans(answer, question.facts)
        ]
        return ExampleResult({"spans_supported": (float(not found), 1.0)}, tuple(found))

    def verdict(self, answer: str, question: Question) -> bool:
        """Whether the answer is supported."""
        return not self._model.spans(answer, question.facts)

    def notes(self) -> Iterator[str]:
        """Below the table."""
        if self._model.cut:
            yield f"the detector did not read all facts of {self._model.cut} answers"


def training_pairs(opened: OpenRun) -> Iterator[tuple[str, str]]:
    """Prompts (all user turns) and answers of the first training rows."""
    for turns in islice(stream_turns(opened, "train"), VOCABULARY_ROWS):
        if turns:
            asked = [turn.content for turn in turns[:-1] if turn.role == "user"]
            yield "\n\n".join(asked), turns[-1].content
