"""The scores of all sides as rows of one table; verdicts are corrected for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ftcli.errors import UsageError, did_you_mean
from ftcli.evaluation.model_outputs import ModelOutputs
from ftcli.evaluation.row_sets import RowSets
from ftcli.evaluation.scorers.scorer import ScoreKind
from ftcli.evaluation.scoring import ScoredSides, Scorers
from ftcli.evaluation.statistics import (
    LEVEL,
    Comparison,
    Counts,
    compare,
    holm,
    mean_of,
    to_difference,
)
from ftcli.runs.results import SIDES, Difference, Score, ScoreRow, Side

LOSS = ScoreKind("loss", "value", "lower")
FINISHED = ScoreKind("finished (EOS)", "share", "higher")
LENGTH = ScoreKind("tokens per answer", "value", None)
TEXT = ScoreKind("general text perplexity", "perplexity", "lower")
INSTRUCTIONS = ScoreKind("instructions perplexity", "perplexity", "lower")
FOLLOWED = ScoreKind("instructions followed", "share", "higher")
INSTRUCTIONS_FINISHED = ScoreKind("instructions finished (EOS)", "share", "higher")
# Only in the JSON: chrF says the same as ROUGE-L, and repetition is a warning.
HIDDEN = {"chrf", "repetition", "answer_tokens"}
# Shown only for labels.
LABEL_SCORE = "exact_match"
# Scores that compare with the reference answer: it cannot have them itself.
REFERENCE_SCORES = {
    "sql_match",
    "execution_match",
    "execution_tested",
    "field_f1",
    "field_accuracy",
}
# Scores that measure whether an answer is right.
CORRECTNESS_SCORES = {
    "judge_supported",
    "spans_supported",
    "execution_match",
    "sql_match",
    "field_f1",
}
CORRECTNESS_SCORES |= {"field_accuracy"}
# Answers are labels if they are few, short, and each of them frequent.
MAX_LABELS, MAX_LABEL_CHARACTERS, ROWS_PER_LABEL = 20, 60, 3


@dataclass
class MeasuredScore:
    """A score of all sides, before it is a row."""

    name: str
    kind: ScoreKind
    sides: dict[Side, Counts] = field(default_factory=dict)
    your_answers: Counts | None = None
    shown: bool = True
    own: bool = False

    def comparison(self, other: Side) -> Comparison | None:
        """The tuned model minus another side; None: they cannot be compared."""
        ours, theirs = self.sides.get(other), self.sides.get("tuned")
        if ours is None or theirs is None:
            return None
        if self.name == "loss" and ours.denominators != theirs.denominators:
            return None  # with a long prompt only the last answer of a conversation is scored
        return compare(ours, theirs)


def are_labels(references: Sequence[str]) -> bool:
    """Whether the reference answers are a few short ones, so that only one is right."""
    found = {reference.strip() for reference in references}
    short = all(text and "\n" not in text and len(text) <= MAX_LABEL_CHARACTERS for text in found)
    return short and len(found) <= min(MAX_LABELS, len(references) / ROWS_PER_LABEL)


def possible_kinds(kinds: Mapping[str, ScoreKind]) -> dict[str, ScoreKind]:
    """Every score that held-out rows may have, in the order of the table."""
    form = {name: kind for name, kind in kinds.items() if name == "format_rate"}
    return {**form, "stop_rate": FINISHED, **kinds, "loss": LOSS}


def correctness_scores(rows: Sequence[ScoreRow], *, labels: bool) -> tuple[str, ...]:
    """Scores in the table that measure whether answers are right; the user's own count."""
    truth = {*CORRECTNESS_SCORES, LABEL_SCORE} if labels else CORRECTNESS_SCORES
    return tuple(row.name for row in rows if row.name in truth or (row.own and row.better))


def task_scores(
    outputs: Mapping[Side, ModelOutputs], scored: ScoredSides, scorers: Scorers, *, labels: bool
) -> list[MeasuredScore]:
    """Scores on the held-out rows; `labels`: the reference answers are labels."""
    kinds = {"loss": LOSS}
    if scored.counts:
        kinds = {**possible_kinds(scorers.kinds), "answer_tokens": LENGTH}
    counts: dict[Side, dict[str, Counts]] = {}
    for side, each in outputs.items():
        counts[side] = {"loss": each.losses, **scored.counts.get(side, {})}
        if answers := each.answers:
            counts[side]["stop_rate"] = mean_of([answer.stopped for answer in answers])
            counts[side]["answer_tokens"] = mean_of([answer.tokens for answer in answers])
    rows = []
    for name, kind in kinds.items():
        sides = {side: each[name] for side, each in counts.items() if name in each}
        row = MeasuredScore(name, kind, sides, own=name in scorers.own)
        if name.partition(".")[0] not in REFERENCE_SCORES:
            row.your_answers = scored.your_answers.get(name)
        row.shown = name not in HIDDEN and (name != LABEL_SCORE or labels)
        if name == "rouge_l" and (labels or CORRECTNESS_SCORES & kinds.keys()):
            row.shown = False
        rows.append(row)
    return [row for row in rows if row.sides]


def forgetting_scores(
    sets: RowSets, outputs: Mapping[Side, Mapping[str, ModelOutputs]]
) -> list[MeasuredScore]:
    """General ability of base and tuned model on the sets `text` and `instructions`."""
    text = MeasuredScore("general_text", TEXT)
    loss = MeasuredScore("instructions", INSTRUCTIONS)
    followed = MeasuredScore("instructions_followed", FOLLOWED)
    finished = MeasuredScore("instructions_finished", INSTRUCTIONS_FINISHED)
    for side, by_set in outputs.items():
        if sets.text is not None and "text" in by_set:
            passages = [row.line for row in sets.text.rows]
            text.sides[side] = _by_passage(by_set["text"].losses, passages)
        if instructed := by_set.get("instructions"):
            answers = instructed.answers
            loss.sides[side] = instructed.losses
            finished.sides[side] = mean_of([answer.stopped for answer in answers])
            pairs = zip(sets.checks, answers, strict=True)
            counts = mean_of([check.is_followed_by(answer.text) for check, answer in pairs])
            if counts.n:
                followed.sides[side] = counts
    return [row for row in (text, loss, followed, finished) if row.sides]


def _by_passage(losses: Counts, passages: Sequence[int]) -> Counts:
    """Sum the pieces of a passage: they are not independent rows."""
    sums = {passage: [0.0, 0.0] for passage in passages}
    for passage, loss, tokens in zip(passages, *losses.ratio, strict=True):
        sums[passage][0] += loss
        sums[passage][1] += tokens
    return Counts(*(tuple(column) for column in zip(*sums.values(), strict=True)))


def require_known(decides_by: str | None, kinds: Mapping[str, ScoreKind]) -> None:
    """Raise UsageError if this evaluation has no score with the name `decides_by`."""
    names = [name for name, kind in kinds.items() if kind.better is not None]
    if decides_by is not None and decides_by not in names:
        hint = did_you_mean(decides_by, names)
        raise UsageError(
            "recipe",
            f"eval.decides_by: no score {decides_by!r}{hint}; this evaluation has "
            f"{', '.join(names)}",
        )


def score_rows(
    scores: Sequence[MeasuredScore], forgetting: Sequence[MeasuredScore], decides_by: str | None
) -> tuple[tuple[ScoreRow, ...], tuple[ScoreRow, ...]]:
    """Rows with their verdicts: family-wise error of 5% over all scores shown.

    The score that decides is tested alone, because it was named beforehand.
    """
    every = (*scores, *forgetting)
    base = _differences(every, "base", decides_by)
    prompted = _differences(every, "prompted", decides_by)
    rows = [_row(each, base.get(each.name), prompted.get(each.name)) for each in every]
    return tuple(rows[: len(scores)]), tuple(rows[len(scores) :])


def _differences(
    rows: Sequence[MeasuredScore], other: Side, decides_by: str | None
) -> dict[str, Difference]:
    """Name of a score → its difference."""
    compared = [(row, each) for row in rows if (each := row.comparison(other)) is not None]
    p_values = {
        row.name: each.p_value
        for row, each in compared
        if row.shown and row.kind.better is not None and not each.too_few
    }
    alone = {decides_by: p_values.pop(decides_by) <= LEVEL} if decides_by in p_values else {}
    significant = alone | dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {
        row.name: to_difference(
            each,
            row.kind.better,
            significant=significant.get(row.name, False),
            has_verdict=row.shown,
        )
        for row, each in compared
    }


def _row(row: MeasuredScore, base: Difference | None, prompted: Difference | None) -> ScoreRow:
    return ScoreRow(
        name=row.name,
        **asdict(row.kind),
        shown=row.shown,
        own=row.own,
        your_answers=_score(row.your_answers) if row.your_answers is not None else None,
        **{side: _score(row.sides[side]) for side in SIDES if side in row.sides},
        tuned_vs_base=base,
        tuned_vs_prompted=prompted,
    )


def _score(counts: Counts) -> Score:
    return Score(value=counts.value, interval=counts.interval(), n=counts.n)
