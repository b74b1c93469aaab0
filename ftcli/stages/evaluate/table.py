"""The scores of all sides as the rows of one table, with verdicts that hold together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ftcli.errors import UsageError, did_you_mean
from ftcli.metrics.likelihood import Scored
from ftcli.metrics.scorer import ScoreKind
from ftcli.metrics.scores import LEVEL, Comparison, Counts, compare, holm, mean_of, verdict_of
from ftcli.results import SIDES, Difference, Score, ScoreRow, Side
from ftcli.stages.evaluate.sets import Sets
from ftcli.stages.evaluate.work import Done

LOSS = ScoreKind("loss", "value", "lower")
FINISHED = ScoreKind("finished (EOS)", "share", "higher")
LENGTH = ScoreKind("tokens per answer", "value", None)
TEXT = ScoreKind("general text perplexity", "perplexity", "lower")
INSTRUCTIONS = ScoreKind("instructions perplexity", "perplexity", "lower")
FOLLOWED = ScoreKind("instructions followed", "share", "higher")
INSTRUCTIONS_FINISHED = ScoreKind("instructions finished (EOS)", "share", "higher")
# In the JSON alone: ROUGE-L says the same as chrF, exact match something of labels only, and
# repetition is a warning.
HIDDEN = {"chrf", "repetition", "answer_tokens"}
OF_LABELS = "exact_match"
# They compare with the row's own answer, which is right by them.
OF_REFERENCE = {"sql_match", "execution_match", "execution_tested", "field_f1", "field_accuracy"}
# A greater share of repeated groups of words is a warning.
MOST_REPEATED = 0.05
# Scores that say whether an answer is right.
TRUTH = (
    "judge_supported",
    "spans_supported",
    "execution_match",
    "sql_match",
    "field_f1",
    "field_accuracy",
)


@dataclass
class Measured:
    """One score of all sides, before it is a row."""

    name: str
    kind: ScoreKind
    sides: dict[Side, Counts] = field(default_factory=dict)
    your_answers: Counts | None = None
    shown: bool = True
    own: bool = False

    def comparison(self, other: Side) -> Comparison | None:
        ours, theirs = self.sides.get(other), self.sides.get("tuned")
        if ours is None or theirs is None or other == "tuned":
            return None
        if self.name == "loss" and ours.denominators != theirs.denominators:
            return None  # a long prompt holds the earlier answers of a conversation
        return compare(ours, theirs)


def task_scores(
    done: Mapping[Side, Done],
    counts: Mapping[Side, Mapping[str, Counts]],
    kinds: Mapping[str, ScoreKind],
    your_answers: Mapping[str, Counts],
    *,
    labels: bool,
) -> list[Measured]:
    """Scores on the held-out rows; `labels`: the rows' own answers are a few labels."""
    found = {name: Measured(name, kind) for name, kind in kinds.items()}
    answered = any(each.answers for each in done.values())
    stops = {"stop_rate": Measured("stop_rate", FINISHED)} if answered else {}
    first = {name: row for name, row in found.items() if name == "format_rate"}
    rows = {**first, **stops, **found, "loss": Measured("loss", LOSS)}
    if answered:
        rows["answer_tokens"] = Measured("answer_tokens", LENGTH)
    for side, each in done.items():
        rows["loss"].sides[side] = loss_counts(each.scored)
        if each.answers:
            rows["stop_rate"].sides[side] = mean_of([answer.stopped for answer in each.answers])
            rows["answer_tokens"].sides[side] = mean_of([a.tokens for a in each.answers])
        for name, score in counts.get(side, {}).items():
            rows[name].sides[side] = score
    for name, row in rows.items():
        if name.partition(".")[0] not in OF_REFERENCE:
            row.your_answers = your_answers.get(name)
        row.own = getattr(row.kind, "own", False)
        row.shown = name not in HIDDEN and (name != OF_LABELS or labels)
        if name == "rouge_l" and (labels or any(truth in rows for truth in TRUTH)):
            row.shown = False
    return [row for row in rows.values() if row.sides]


def loss_counts(scored: Scored) -> Counts:
    return Counts(scored.losses, tuple(float(tokens) for tokens in scored.tokens))


def forgetting_scores(
    sets: Sets, before: Mapping[str, Done], after: Mapping[str, Done]
) -> list[Measured]:
    """General ability of base and tuned model, by the sets `text` and `instructions`."""
    sides: dict[Side, Mapping[str, Done]] = {"base": before, "tuned": after}
    found: list[Measured] = []
    if sets.text is not None:
        passages = [row.line for row in sets.text.rows]
        text = Measured("general_text", TEXT)
        for side, done in sides.items():
            text.sides[side] = _by_passage(done["text"].scored, passages)
        found.append(text)
    if sets.instructions is not None:
        loss = Measured("instructions", INSTRUCTIONS)
        followed = Measured("instructions_followed", FOLLOWED)
        finished = Measured("instructions_finished", INSTRUCTIONS_FINISHED)
        for side, done in sides.items():
            answered = done["instructions"]
            loss.sides[side] = loss_counts(answered.scored)
            finished.sides[side] = mean_of([answer.stopped for answer in answered.answers])
            pairs = zip(sets.asked_of_all, answered.answers, strict=True)
            checked = [each.is_followed_by(answer.text) for each, answer in pairs]
            counts = Counts(
                tuple(float(bool(each)) for each in checked),
                tuple(float(each is not None) for each in checked),
            )
            if counts.n:
                followed.sides[side] = counts
        found += [loss, *([followed] if followed.sides else []), finished]
    return found


def _by_passage(scored: Scored, passages: Sequence[int]) -> Counts:
    """Pieces of one text are not independent rows."""
    losses: dict[int, float] = {}
    tokens: dict[int, float] = {}
    for passage, loss, count in zip(passages, scored.losses, scored.tokens, strict=True):
        losses[passage] = losses.get(passage, 0.0) + loss
        tokens[passage] = tokens.get(passage, 0.0) + count
    return Counts(tuple(losses.values()), tuple(tokens.values()))


def require_known(decides_by: str | None, kinds: Mapping[str, ScoreKind]) -> None:
    """Raises UsageError where no score of this evaluation has the name that decides."""
    names = [name for name, kind in kinds.items() if kind.better is not None]
    if decides_by is not None and decides_by not in names:
        hint = did_you_mean(decides_by, names)
        raise UsageError(
            "recipe",
            f"eval.decides_by: no score {decides_by!r}{hint}; this evaluation has "
            f"{', '.join(names)}",
        )


def rows_of(
    scores: Sequence[Measured], forgetting: Sequence[Measured], decides_by: str | None
) -> tuple[tuple[ScoreRow, ...], tuple[ScoreRow, ...]]:
    """Rows with their verdicts: over all that are shown together a false one has a chance of 5%.

    The score that decides is tested alone, as one that was named before.
    """
    verdicts: dict[tuple[str, Side], Difference] = {}
    others: tuple[Side, ...] = ("base", "prompted")
    for other in others:
        every = [(row, row.comparison(other)) for row in (*scores, *forgetting)]
        found = [(row, each) for row, each in every if each is not None]
        tested = [
            (row, each) for row, each in found if row.shown and row.kind.better and not each.too_few
        ]
        alone = {row.name: each for row, each in tested if row.name == decides_by}
        corrected = [(row.name, each) for row, each in tested if row.name not in alone]
        significant = dict(
            zip(
                [name for name, _ in corrected],
                holm([each.p_value for _, each in corrected]),
                strict=True,
            )
        )
        significant |= {name: each.p_value <= LEVEL for name, each in alone.items()}
        for row, each in found:
            holds = significant.get(row.name, False)
            verdicts[row.name, other] = _difference(row, each, significant=holds)
    return (
        tuple(_row(row, verdicts) for row in scores),
        tuple(_row(row, verdicts) for row in forgetting),
    )


def _difference(row: Measured, found: Comparison, *, significant: bool) -> Difference:
    better = row.kind.better
    higher_is_better = better == "higher"
    ups, downs = found.rows_higher, found.rows_lower
    judged = better is not None and row.shown
    return Difference(
        value=found.difference,
        interval=found.interval,
        n=found.n,
        rows_better=(ups if higher_is_better else downs) if better else None,
        rows_worse=(downs if higher_is_better else ups) if better else None,
        p_value=found.p_value,
        verdict=verdict_of(found, better, significant=significant) if better and judged else None,
    )


def _row(row: Measured, verdicts: Mapping[tuple[str, Side], Difference]) -> ScoreRow:
    sides = {side: _score(row.sides[side]) for side in SIDES if side in row.sides}
    return ScoreRow(
        name=row.name,
        label=row.kind.label,
        unit=row.kind.unit,
        better=row.kind.better,
        shown=row.shown,
        own=row.own,
        your_answers=_score(row.your_answers) if row.your_answers is not None else None,
        **sides,
        tuned_vs_base=verdicts.get((row.name, "base")),
        tuned_vs_prompted=verdicts.get((row.name, "prompted")),
    )


def _score(counts: Counts) -> Score:
    return Score(value=counts.value, interval=counts.interval(), n=counts.n)
