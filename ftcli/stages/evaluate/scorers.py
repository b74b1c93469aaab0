"""Which scorers an evaluation uses, and every answer scored by them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ftcli.console import Reporter
from ftcli.errors import did_you_mean
from ftcli.metrics.format import FormatScorer, format_files, format_scorer
from ftcli.metrics.grounding import GroundingScorer, facts_text, grounding_files
from ftcli.metrics.grounding.facts import facts_of
from ftcli.metrics.scorer import ExampleResult, Finding, Question, ScoreKind, Scorer
from ftcli.metrics.scores import Counts, ScoredAnswers, score_answers
from ftcli.metrics.text import TextScorer
from ftcli.results import Side
from ftcli.stages.evaluate.asked import Asked
from ftcli.stages.evaluate.custom import custom_scorer
from ftcli.stages.evaluate.judge import PREFERRED, JudgeScorer
from ftcli.stages.evaluate.labels import agreement, labels_files, read_labels
from ftcli.stages.evaluate.streamed import turns_of
from ftcli.stages.evaluate.table import FINISHED, LOSS
from ftcli.stages.opening import OpenRun

if TYPE_CHECKING:
    from ftcli.engine.span_detector import SpanDetector

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
NOT_CALIBRATED = "how often the {} is right on your task is not known: label 20 answers ({})"
# Where so few of the rows' own answers have the form, a model cannot have learnt it from them.
LEAST_IN_FORM = 0.5


class Scorers:
    """Every scorer of one evaluation."""

    def __init__(self, opened: OpenRun, asked: Asked) -> None:
        """Raises FtcliError where what the recipe or a flag names cannot be used."""
        wanted, base = opened.loaded.recipe.eval, opened.loaded.base
        self._form: FormatScorer | None = None
        self._wanted = wanted
        self._of_answers: list[Scorer] = []
        self._detector: DetectorScorer | None = None
        self._judge: JudgeScorer | None = None
        self._base = base
        self.files: list[Path] = []
        """What the scores depend on besides recipe and answers."""
        if wanted.format is not None:
            self.files += format_files(wanted.format, base)
            self._form = format_scorer(wanted.format, base)
            self._of_answers.append(self._form)
        if wanted.grounding is not None:
            self.files += grounding_files(wanted.grounding, base)
            self._of_answers.append(GroundingScorer(wanted.grounding, base, training_pairs(opened)))
            self.files += labels_files(wanted.grounding.labels, base)
            if wanted.grounding.model is not None:
                self._detector = DetectorScorer(opened, wanted.grounding.model)
                self._of_answers.append(self._detector)
        if wanted.judge is not None:
            self.files += labels_files(wanted.judge.labels, base)
            self._judge = JudgeScorer(wanted.judge, opened.run.evaluations)
            self._of_answers.append(self._judge)
        if asked.scores is not None:
            self._of_answers.append(custom_scorer(asked.scores, {*self.kinds, *RESERVED}))

    @property
    def kinds(self) -> dict[str, ScoreKind]:
        """Every score of an answer, in the order in which it is shown."""
        found: dict[str, ScoreKind] = {}
        for scorer in (*self._of_answers, TextScorer()):
            found |= scorer.kinds
        return found

    @property
    def possible(self) -> dict[str, ScoreKind]:
        """What this evaluation may show of the held-out rows, before anything is answered."""
        found = {"stop_rate": FINISHED, **self.kinds, "loss": LOSS}
        if self._wanted.judge is not None and self._wanted.judge.pairwise:
            found["judge_preferred"] = PREFERRED
        return found

    def score(
        self, label: str, texts: Sequence[str], questions: Sequence[Question], reporter: Reporter
    ) -> ScoredAnswers:
        """One side's answers. Raises FtcliError where a judge does not answer."""
        self._ask_judge(label, texts, questions, reporter)
        scorers = [*self._of_answers, TextScorer()]
        with reporter.meter(f"{label}: scores", len(texts)) as meter:
            return score_answers(scorers, texts, questions, meter.update)

    def your_answers(
        self, questions: Sequence[Question], reporter: Reporter
    ) -> Mapping[str, Counts]:
        """The rows' own answers, by the scores that do not compare with them."""
        references = [question.reference for question in questions]
        self._ask_judge("your answers", references, questions, reporter)
        return score_answers(self._of_answers, references, questions, lambda _: None).counts

    def preferred(
        self,
        base: Sequence[str],
        tuned: Sequence[str],
        questions: Sequence[Question],
        reporter: Reporter,
    ) -> dict[Side, Counts]:
        """How often the judge prefers each side's answer, where the recipe asks it to compare."""
        judge = self._judge
        if judge is None or self._wanted.judge is None or not self._wanted.judge.pairwise:
            return {}
        pairs = list(zip(base, tuned, questions, strict=True))
        with reporter.meter("judge: pairs", len(pairs)) as meter:
            judge.prepare([judge.pair_request(*pair)[0] for pair in pairs], meter.update)
        wins = [judge.preferred(*pair) for pair in pairs]
        counted = tuple(float(win is not None) for win in wins)
        ours = tuple(1 - win if win is not None else 0.0 for win in wins)
        theirs = tuple(win if win is not None else 0.0 for win in wins)
        return {"base": Counts(ours, counted), "tuned": Counts(theirs, counted)}

    def calibration(self, reporter: Reporter) -> Iterator[str]:
        """How often detector and judge agree with the user's own labels, in words."""
        grounding, wanted = self._wanted.grounding, self._wanted.judge
        facts = partial(facts_text, grounding)
        if self._detector is not None and grounding is not None:
            if grounding.labels is not None:
                labels = read_labels(grounding.labels, self._base, facts)
                found = [not self._detector.spans(e.answer, e.question) for e in labels]
                yield agreement(labels, found, "the detector")
            else:
                yield NOT_CALIBRATED.format("detector", "eval.grounding.labels")
            if self._detector.cut:
                yield f"the detector did not read all facts of {self._detector.cut} answers"
        if self._judge is not None and wanted is not None:
            if wanted.labels is not None:
                labels = read_labels(wanted.labels, self._base, facts)
                answers = [each.answer for each in labels]
                questions = [each.question for each in labels]
                self._ask_judge("your labels", answers, questions, reporter)
                pairs = zip(answers, questions, strict=True)
                yield agreement(labels, [self._judge.verdict(*p) for p in pairs], "the judge")
            else:
                yield NOT_CALIBRATED.format("judge", "eval.judge.labels")
            if self._judge.without_verdict:
                yield f"the judge gave no verdict on {self._judge.without_verdict} answers"

    def _ask_judge(
        self, label: str, texts: Sequence[str], questions: Sequence[Question], reporter: Reporter
    ) -> None:
        if (judge := self._judge) is not None:
            pairs = zip(texts, questions, strict=True)
            with reporter.meter(f"judge: {label}", len(texts)) as meter:
                judge.prepare([judge.supported_request(*pair) for pair in pairs], meter.update)

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


class DetectorScorer:
    """Counts answers in which the detector marks no span."""

    kinds = MappingProxyType(
        {"spans_supported": ScoreKind("supported (detector)", "share", "higher")}
    )

    def __init__(self, opened: OpenRun, model_id: str) -> None:
        self._opened = opened
        self._model_id = model_id

    @cached_property
    def _model(self) -> SpanDetector:
        from ftcli.engine.device import hardware_for
        from ftcli.engine.span_detector import SpanDetector

        loaded = self._opened.loaded
        return SpanDetector(self._model_id, loaded.base, hardware_for(loaded))

    @property
    def cut(self) -> int:
        """Answers whose facts were longer than the detector reads."""
        return self._model.cut

    def spans(self, answer: str, question: Question) -> list[tuple[int, int]]:
        return self._model.spans(answer, question.facts)

    def score(self, answer: str, question: Question) -> ExampleResult:
        found = [
            Finding("not supported (detector)", f"“{answer[start:end]}”", start, end)
            for start, end in self.spans(answer, question)
        ]
        return ExampleResult({"spans_supported": (float(not found), 1.0)}, tuple(found))


def training_pairs(opened: OpenRun) -> Iterator[tuple[str, str]]:
    """Prompts (all user turns) and answers of the first training rows."""
    for turns in islice(turns_of(opened, "train"), VOCABULARY_ROWS):
        if turns:
            asked = [turn.content for turn in turns[:-1] if turn.role == "user"]
            yield "\n\n".join(asked), turns[-1].content
