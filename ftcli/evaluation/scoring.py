"""The scorers of an evaluation, and every answer scored."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ftcli.config.loader import RecipeFile
from ftcli.config.section import paths_of
from ftcli.console import Reporter, counted, shown_path
from ftcli.errors import DataError, did_you_mean
from ftcli.evaluation.eval_rows import stream_turns
from ftcli.evaluation.scorers.custom import CustomScorer, custom_scorer
from ftcli.evaluation.scorers.facts import GroundingScorer, facts_of
from ftcli.evaluation.scorers.format import FormatScorer, format_scorer
from ftcli.evaluation.scorers.judge import CheckerName, JudgeScorer, Label, agreement, read_labels
from ftcli.evaluation.scorers.scorer import ExampleResult, Question, ScoreKind, Scorer
from ftcli.evaluation.scorers.span_detector import SpanDetector
from ftcli.evaluation.scorers.text import TextScorer
from ftcli.evaluation.statistics import Counts, mean_of
from ftcli.runs.results import Side
from ftcli.training.opening import OpenRun

# Training rows that the vocabulary of a task is learnt from.
VOCABULARY_ROWS = 5_000
RESERVED_NAMES = {
    *("loss", "perplexity", "stop_rate"),
    *("answer_tokens", "prompt_tokens", "tokens_per_second"),
}
# Repetition above this is noted below the table.
MAX_REPETITION = 0.05
# If fewer of the reference answers are in the format, no model can learn it from them.
MIN_FORMAT_SHARE = 0.5


@dataclass(frozen=True)
class ScoredAnswers:
    """The scored answers of one side."""

    results: Sequence[ExampleResult]
    """Of each row, by all scorers."""
    counts: Mapping[str, Counts]


def score_answers(
    scorers: Sequence[Scorer],
    answers: Sequence[str],
    questions: Sequence[Question],
    on_row: Callable[[], None],
) -> ScoredAnswers:
    """Score every answer with every scorer; `on_row` is called after each row."""
    results = []
    for answer, question in zip(answers, questions, strict=True):
        found = [scorer.score(answer, question) for scorer in scorers]
        counts = {name: pair for each in found for name, pair in each.counts.items()}
        findings = tuple(finding for each in found for finding in each.findings)
        results.append(ExampleResult(counts, findings))
        on_row()
    # A JSON scorer knows the names of its fields only now.
    names = [name for each in scorers for name in each.kinds]
    return ScoredAnswers(results, collect_counts(results, names))


def collect_counts(results: Sequence[ExampleResult], names: Iterable[str]) -> dict[str, Counts]:
    """Counts of each score that any row has; (0, 0) for rows without it."""
    found = {}
    for name in names:
        pairs = [result.counts.get(name, (0.0, 0.0)) for result in results]
        counts = Counts(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))
        if counts.n:
            found[name] = counts
    return found


@dataclass(frozen=True)
class ScoredSides:
    """The scored answers of all sides, and of the rows themselves; empty for plain texts."""

    results: Mapping[Side, Sequence[ExampleResult]] = field(default_factory=dict)
    counts: Mapping[Side, Mapping[str, Counts]] = field(default_factory=dict)
    your_answers: Mapping[str, Counts] = field(default_factory=dict)
    """Scores of the reference answers, by scorers that need no reference."""
    notes: tuple[str, ...] = ()
    """Sentences below the table."""


class Scorers:
    """Every scorer of one evaluation."""

    def __init__(self, opened: OpenRun, scores: Path | None, reporter: Reporter) -> None:
        """`scores`: a Python file. Raises FtcliError for a file or model that cannot be used."""
        wanted = opened.recipe.eval
        self._wanted, self._opened, self._reporter = wanted, opened, reporter
        self._format: FormatScorer | None = None
        self._judge: JudgeScorer | None = None
        self._detector: SpanDetector | None = None
        self._custom: CustomScorer | None = None
        self._without_reference: list[Scorer] = []
        """Scorers that need no reference answer."""
        if wanted.format is not None:
            self._format = format_scorer(wanted.format)
            self._without_reference.append(self._format)
        if wanted.grounding is not None:
            pairs = training_pairs(opened)
            self._without_reference.append(GroundingScorer(wanted.grounding, pairs))
            if wanted.grounding.model is not None:
                self._detector = SpanDetector(wanted.grounding.model, opened.recipe)
                self._without_reference.append(self._detector)
        if wanted.judge is not None:
            self._judge = JudgeScorer(wanted.judge, opened.run.evaluations)
            self._without_reference.append(self._judge)
        if scores is not None:
            self._custom = custom_scorer(scores, {*self.kinds, *RESERVED_NAMES})
            self._without_reference.append(self._custom)

    @property
    def kinds(self) -> dict[str, ScoreKind]:
        """Every score, in the order of the table."""
        found: dict[str, ScoreKind] = {}
        for scorer in (*self._without_reference, TextScorer()):
            found |= scorer.kinds
        return found

    @property
    def own(self) -> set[str]:
        """Scores of the user's file."""
        return set(self._custom.kinds) if self._custom is not None else set()

    def score(
        self, texts: Mapping[Side, Sequence[str]], questions: Sequence[Question]
    ) -> ScoredSides:
        """Score every answer of every side; raises FtcliError if a judge does not answer."""
        if not texts:
            return ScoredSides()
        references = [question.reference for question in questions]
        self._ask_judge(texts, questions)
        results: dict[Side, Sequence[ExampleResult]] = {}
        counts: dict[Side, dict[str, Counts]] = {}
        scored_rows = itertools.count(1)
        with self._reporter.meter("answers scored", (len(texts) + 1) * len(questions)) as meter:

            def on_row() -> None:
                meter.update(next(scored_rows))

            for side, answers in texts.items():
                scorers = [*self._without_reference, TextScorer()]
                scored = score_answers(scorers, answers, questions, on_row)
                results[side], counts[side] = scored.results, dict(scored.counts)
            own = score_answers(self._without_reference, references, questions, on_row).counts
        if self._judge is not None and self._judge.compares and "base" in texts:
            pairs = zip(texts["base"], texts["tuned"], questions, strict=True)
            wins = [self._judge.preferred(*pair) for pair in pairs]
            if (tuned := mean_of(wins)).n:
                counts["tuned"]["judge_preferred"] = tuned
                lost = mean_of([None if win is None else 1 - win for win in wins])
                counts["base"]["judge_preferred"] = lost
        for warning in self._warnings(questions, own):
            self._reporter.warn(warning)
        return ScoredSides(results, counts, own, tuple(self._notes(counts["tuned"])))

    def _ask_judge(
        self, texts: Mapping[Side, Sequence[str]], questions: Sequence[Question]
    ) -> None:
        """Fetch the verdicts on all answers, the references, the user's labels and pairs."""
        if (judge := self._judge) is None:
            return
        answers = [*texts.values(), [question.reference for question in questions]]
        requests = [
            judge.supported_request(*pair)
            for side in answers
            for pair in zip(side, questions, strict=True)
        ]
        if judge.compares and "base" in texts:
            pairs = zip(texts["base"], texts["tuned"], questions, strict=True)
            requests += [judge.pair_request(*pair)[0] for pair in pairs]
        requests += [
            judge.supported_request(label.answer, label.question(self._wanted.grounding))
            for label in self._labels("judge")
        ]
        with self._reporter.meter("verdicts of the judge", len(requests)) as meter:
            judge.fetch(requests, meter.update)

    def _labels(self, checker: CheckerName) -> list[Label]:
        """The user's labels for a checker; raises DataError (`labels`)."""
        wanted = self._wanted.judge if checker == "judge" else self._wanted.grounding
        name = wanted.labels if wanted is not None else None
        return read_labels(Path(name)) if name is not None else []

    def _notes(self, tuned: Mapping[str, Counts]) -> Iterator[str]:
        """Repetition, and agreement of detector and judge with the user's labels."""
        repetition = tuned.get("repetition")
        if repetition is not None and repetition.value > MAX_REPETITION:
            yield (
                f"the tuned model repeats itself: {repetition.value:.0%} of its 4-grams occurred "
                "earlier in the same answer"
            )
        checkers: dict[CheckerName, SpanDetector | JudgeScorer | None]
        checkers = {"detector": self._detector, "judge": self._judge}
        for name, checker in checkers.items():
            if checker is not None:
                labels = self._labels(name)
                asked = [label.question(self._wanted.grounding) for label in labels]
                pairs = zip(labels, asked, strict=True)
                verdicts = [checker.verdict(label.answer, question) for label, question in pairs]
                yield agreement(name, labels, verdicts)
                yield from checker.notes()

    def _warnings(self, questions: Sequence[Question], own: Mapping[str, Counts]) -> Iterator[str]:
        """Settings of `eval` that match nothing in the rows, and scores that are missing."""
        if self._format is not None:
            yield from self._format.warnings()
            rate = own.get("format_rate")
            if rate is not None and rate.value < MIN_FORMAT_SHARE:
                hits = round(sum(rate.numerators))
                yield f"eval.format: only {hits} of {rate.n} of your own answers have it"
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
                    f"eval.grounding.facts: found nothing in {unfound} of "
                    f"{counted(len(questions), 'prompt')}; their whole prompts count as facts"
                )
        keys = {fact.key for question in questions for fact in facts_of(question.facts)}
        for name in grounding.optional:
            if name.casefold() not in {key.casefold() for key in keys}:
                hint = did_you_mean(name, keys)
                yield f"eval.grounding.optional: no row has a fact {name!r}{hint}"


def training_pairs(opened: OpenRun) -> Iterator[tuple[str, str]]:
    """Prompts (all user turns) and answers of training rows."""
    for turns in itertools.islice(stream_turns(opened, "train"), VOCABULARY_ROWS):
        if turns:
            asked = [turn.content for turn in turns[:-1] if turn.role == "user"]
            yield "\n\n".join(asked), turns[-1].content


def require_scored_files(loaded: RecipeFile) -> None:
    """Raise DataError for a file of the recipe's `eval:` that `ftcli eval` could not use.

    Codes: `answer_schema`, `answer_table`, `banned_phrases`, or what reading rows raises.
    """
    wanted = loaded.recipe.eval
    for named in paths_of(wanted, "eval."):
        path = Path(named.value)
        if named.kind.code is not None and not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "no such file"
            file, line = loaded.place(named.key)
            message = f"{named.key}: {shown_path(path)}: {what}"
            raise DataError(named.kind.code, message, file=file, line=line)
    if wanted.format is not None:
        format_scorer(wanted.format)
    if wanted.grounding is not None:
        GroundingScorer(wanted.grounding, ())
