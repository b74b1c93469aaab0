"""Which scorers an evaluation uses, and every answer scored by them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ftcli.evaluation.statistics import Counts
from ftcli.runs.results import Side
from ftcli.training.opening import OpenRun

# Training rows that the vocabulary of a task is learnt from.
VOCABULARY_ROWS = 5_000
RESERVED_NAMES = {
    *("loss", "perplexity", "stop_rate"),
    *("answer_tokens", "prompt_tokens", "tokens_per_second"),
}
# A greater share of repeated groups of words is noted below the table.
REPETITION_WORTH_SAYING = 0.05
# Below this share of the rows' own answers, a model cannot have learnt the format from them.
MIN_FORMAT_SHARE = 0.5


@dataclass(frozen=True)
class ScoredAnswers:
    """The answers of one side, scored."""

    results: Sequence[ExampleResult]
    """Row by row, of all scorers together."""
    counts: Mapping[str, Counts]


def score_answers(
    scorers: Sequence[Scorer],
    answers: Sequence[str],
    questions: Sequence[Question],
    done: Callable[[], None],
) -> ScoredAnswers:
    """Every answer by every scorer; `done` is called after each row."""
    results = []
    for answer, question in zip(answers, questions, strict=True):
        found = [scorer.score(answer, question) for scorer in scorers]
        counts = {name: pair for each in found for name, pair in each.counts.items()}
        findings = tuple(finding for each in found for finding in each.findings)
        results.append(ExampleResult(counts, findings))
        done()
    # A scorer may know its scores only after every question.
    names = [name for each in scorers for name in each.kinds]
    return ScoredAnswers(results, collect_counts(results, names))


def collect_counts(results: Sequence[ExampleResult], names: Sequence[str]) -> dict[str, Counts]:
    """Counts of each score that a row counts for; (0, 0) for the other rows."""
    found = {}
    for name in names:
        pairs = [result.counts.get(name, (0.0, 0.0)) for result in results]
        counts = Counts(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))
        if counts.n:
            found[name] = counts
    return found


@dataclass(frozen=True)
class ScoredSides:
    """The answers of all sides and the rows' own, scored; empty for plain texts."""

    results: Mapping[Side, Sequence[ExampleResult]] = field(default_factory=dict)
    counts: Mapping[Side, Mapping[str, Counts]] = field(default_factory=dict)
    your_answers: Mapping[str, Counts] = field(default_factory=dict)
    """By the scores that do not compare with the rows' own answers."""
    notes: tuple[str, ...] = ()
    """Sentences below the table."""


class Scorers:
    """Every scorer of one evaluation."""

    def __init__(self, opened: OpenRun, scores: Path | None, reporter: Reporter) -> None:
        """`scores`: a file of the user's own. Raises FtcliError where something that the recipe or
        a flag names cannot be used."""
        wanted = opened.recipe.eval
        self._wanted, self._opened, self._reporter = wanted, opened, reporter
        self._format: FormatScorer | None = None
        self._judge: JudgeScorer | None = None
        self._detector: SpanDetector | None = None
        self._custom: CustomScorer | None = None
        self._without_reference: list[Scorer] = []
        """Scorers that do not compare with the rows' own answers."""
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
        """Every score of an answer, in the order of the table."""
        found: dict[str, ScoreKind] = {}
        for scorer in (*self._without_reference, TextScorer()):
            found |= scorer.kinds
        return found

    @property
    def own(self) -> set[str]:
        """Scores of the user's own file."""
        return set(self._custom.kinds) if self._custom is not None else set()

    def score(
        self, texts: Mapping[Side, Sequence[str]], questions: Sequence[Question]
    ) -> ScoredSides:
        """Every answer of every side. Raises FtcliError where a judge does not answer."""
        if not texts:
            return ScoredSides()
        references = [question.reference for question in questions]
        self._ask_judge(texts, questions)
        results: dict[Side, Sequence[ExampleResult]] = {}
        counts: dict[Side, dict[str, Counts]] = {}
        scored_rows = itertools.count(1)
        with self._reporter.meter("answers scored", (len(texts) + 1) * len(questions)) as meter:

            def done() -> None:
                meter.update(next(scored_rows))

            for side, answers in texts.items():
                scorers = [*self._without_reference, TextScorer()]
                scored = score_answers(scorers, answers, questions, done)
                results[side], counts[side] = scored.results, dict(scored.counts)
            own = score_answers(self._without_reference, references, questions, done).counts
        if self._judge is not None and self._judge.compares and "base" in texts:
            pairs = list(zip(texts["base"], texts["tuned"], questions, strict=True))
            for side, wins in _preferred(self._judge, pairs).items():
                if wins.n:
                    counts[side]["judge_preferred"] = wins
        for warning in self._warnings(questions, own):
            self._reporter.warn(warning)
        return ScoredSides(results, counts, own, tuple(self._notes(counts["tuned"])))

    def _ask_judge(
        self, texts: Mapping[Side, Sequence[str]], questions: Sequence[Question]
    ) -> None:
        """Fetch all verdicts: of each answer, of the rows' own, of the user's labels, of pairs."""
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
            judge.prepare(requests, meter.update)

    def _labels(self, checker: CheckerName) -> list[Label]:
        """The user's labels for a checker; raises DataError (`labels`)."""
        wanted = self._wanted.judge if checker == "judge" else self._wanted.grounding
        name = wanted.labels if wanted is not None else None
        return read_labels(Path(name)) if name is not None else []

    def _notes(self, tuned: Mapping[str, Counts]) -> Iterator[str]:
        """Repetition, and how often detector and judge agree with the user's own labels."""
        repetition = tuned.get("repetition")
        if repetition is not None and repetition.value > REPETITION_WORTH_SAYING:
            yield (
                f"the tuned model repeats itself: {repetition.value:.0%} of its groups of four "
                "words stood before in the same answer"
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
        """Settings of `eval` that match nothing in the rows, and scores that cannot be had."""
        if self._format is not None:
            yield from self._format.warnings()
            rate = own.get("format_rate")
            if rate is not None and rate.value < MIN_FORMAT_SHARE:
                hits = round(sum(rate.numerators))
                yield f"eval.format: {hits} of {rate.n} of your own answers have that form"
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
                    f"{counted(len(questions), 'prompt')}; there the whole prompt counts as facts"
                )
        keys = {fact.key for question in questions for fact in facts_of(question.facts)}
        for name in grounding.optional:
            if name.casefold() not in {key.casefold() for key in keys}:
                hint = did_you_mean(name, keys)
                yield f"eval.grounding.optional: no row has a fact {name!r}{hint}"


def _preferred(
    judge: JudgeScorer, pairs: Sequence[tuple[str, str, Question]]
) -> dict[Side, Counts]:
    """How often the judge prefers the first answer of a pair, the base's, or the second."""
    wins = [judge.preferred(*pair) for pair in pairs]
    denominators = tuple(float(win is not None) for win in wins)
    tuned = tuple(win or 0.0 for win in wins)
    base = tuple(total - win for total, win in zip(denominators, tuned, strict=True))
    return {"base": Counts(base, denominators), "tuned": Counts(tuned, denominators)}


def training_pairs(opened: OpenRun) -> Iterator[tuple[str, str]]:
    """Prompts (all user turns) and answers of the first training rows."""
    for turns in itertools.islice(stream_turns(opened, "train"), VOCABULARY_ROWS):
        if turns:
            asked = [turn.content for turn in turns[:-1] if turn.role == "user"]
            yield "\n\n".join(asked), turns[-1].content


def require_scored_files(loaded: RecipeFile) -> None:
    """Raise DataError where `ftcli eval` could not use a file that the recipe's `eval` names.

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
