"""One sentence for a colleague: can it be shipped? Never more than the intervals show.

The rules, the first that holds decides:

1. not finished, or not evaluated: nothing is said but what to do;
2. evaluated without the base: nothing can be said to be better;
3. worse than the base in a score, better in none: do not ship it;
4. better in none, worse in none: not shown to be better;
5. better in some, but one of the REASONS TO LOOK holds: look before shipping;
6. else: ship it.

Reasons to look: worse than the base in another score; the base with a long prompt is better in a
score; better in loss alone though answers were scored; nothing measured whether answers are right;
answers too often wrong, or a share below what it should be, by the lower end of its interval
(`enough`); answers that make a banned claim (MOST_AT_FAULT); general ability shown to be lost by
much (`Forgotten.matters`); rows that were trained on or chose the checkpoint; rows or figures that
are gone. How often answers are right, or that nothing measured it, stands before all else in the
sentence.

Scores without a better way (lengths) never count, perplexity is loss said otherwise, and a part of
what another score is the whole of is told in the table alone (WHOLES), and so are a score that is
equal to an earlier one in every row and those by lists of words (BY_WORDS). Of all that are left,
those are better or worse here that Holm's step-down shows at 5% together: each by itself at 95%,
twelve scores that nothing has changed would give a verdict in four of ten evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from ftcli.metrics.many import LEVEL, holm, p_value
from ftcli.metrics.scorer import BY_WORDS
from ftcli.metrics.scores import rows_among
from ftcli.stages.report.enough import NOT_MEASURED, how_right, not_enough, not_measured
from ftcli.stages.report.evaluations import Evaluation
from ftcli.stages.report.forgotten import Forgotten
from ftcli.stages.report.scored import ScoreRow

Kind = Literal[
    "ship", "look", "not shown", "worse", "not compared", "not evaluated", "not finished"
]

# A limit of our own: one answer in ten that says what must not be said is found by the first users.
MOST_AT_FAULT = 0.10

# Perplexity is exp(loss), said once.
NOT_WEIGHED = {"perplexity", *BY_WORDS}
# Part → the score that is the whole of it; of `field_f1.<name>` it is `field_f1`.
WHOLES = {
    **dict.fromkeys(("json_valid", "json_conforming", "sql_valid"), "format_rate"),
    **dict.fromkeys(("pattern_match", "sections_present", "length_kept"), "format_rate"),
    **dict.fromkeys(("sql_runs", "sql_match"), "execution_match"),
}
FEW_NAMED = 3


@dataclass(frozen=True)
class Verdict:
    """What can be said of a run."""

    kind: Kind
    headline: str
    """Two to six words."""
    words: str
    """One sentence, or two."""
    reasons: tuple[str, ...] = ()
    """Why it has to be looked at, one a line."""
    command: str = ""
    """What to type next; `words` end with it."""


@dataclass(frozen=True)
class FaultShare:
    """Tuned answers that make a banned claim."""

    answers: int
    of: int


def verdict_of(
    state: str, name: str, evaluation: Evaluation | None, faults: FaultShare | None = None
) -> Verdict:
    """The verdict on a run; `name` is how a command names it."""
    if state != "finished":
        go_on = f"ftcli train {name}"
        return Verdict(
            "not finished",
            "Not finished yet.",
            f"The training is not finished ({state or 'not begun'}); go on: {go_on}",
            command=go_on,
        )
    evaluate = f"ftcli eval {name}"
    if evaluation is None:
        return Verdict(
            "not evaluated",
            "Not evaluated yet.",
            f"Whether the tuned model is better than its base has not been measured: {evaluate}",
            command=evaluate,
        )
    if "base" not in evaluation.sides:
        return Verdict(
            "not compared",
            "Not compared with its base.",
            f"{_lead(evaluation)}Its own scores were measured on {evaluation.data_words}, those of "
            f"the base were not: {evaluate}",
            command=evaluate,
        )
    return _compared(evaluation, faults)


def _compared(evaluation: Evaluation, faults: FaultShare | None) -> Verdict:
    better = _rows(evaluation, "base", "better")
    worse = _rows(evaluation, "base", "worse")
    if worse and not better:
        return Verdict(
            "worse",
            "Do not ship it.",
            f"{_lead(evaluation)}Worse than the base in {_listed(worse)}, shown to be better in "
            f"none. Measured on {evaluation.data_words}.{_by_chance(evaluation)}",
        )
    if not better:
        return Verdict(
            "not shown",
            "Not shown to be better.",
            f"{_lead(evaluation)}No score is shown to be better or worse than the base's with "
            f"{evaluation.data_words}: {_advice(evaluation)}.{_by_chance(evaluation)}",
        )
    reasons = tuple(_reasons(evaluation, better, worse, faults))
    measured = f"Measured on {evaluation.data_words}.{_by_chance(evaluation)}"
    gains = f"better than the base in {_listed(better)}"
    if reasons:
        but = f", but worse in {_listed(worse)}" if worse else ""
        words = f"{_lead(evaluation)}{_capital(gains)}{but}. {measured}"
        return Verdict("look", "Look before you ship it.", words, reasons)
    parts = [gains, *_stops(evaluation, better), _forgetting(evaluation)]
    words = f"{_lead(evaluation)}{_capital('; '.join(parts))}. {measured}"
    return Verdict("ship", "Ship it.", words)


def _lead(evaluation: Evaluation) -> str:
    """How often the answers are right, as a sentence; empty where there are none."""
    found = how_right(evaluation)
    if not found and not evaluation.answered:
        return ""
    return f"{_capital(', '.join(found) or NOT_MEASURED)}. "


def _rows(evaluation: Evaluation, other: str, verdict: str) -> list[ScoreRow]:
    """Scores in which tuned is shown to be better, or worse, than another side, all of them
    together; the loss comes last, which says least to a person."""
    rows = _weighed(evaluation, other)
    shown = holm([_p_value(row, other) for row in rows])
    pairs = zip(rows, shown, strict=True)
    found = [row for row, holds in pairs if holds and row.against[other].verdict == verdict]
    return sorted(found, key=lambda row: row.score.name == "loss")


def _weighed(evaluation: Evaluation, other: str) -> list[ScoreRow]:
    """Scores that have a better way and are neither another one said otherwise nor a part of it;
    of those that are equal in every row, the first."""
    rows = [row for row in evaluation.scores if row.score.better and other in row.against]
    names = {row.score.name for row in rows}
    found: dict[str, ScoreRow] = {}
    for row in rows:
        name = row.score.name
        if name not in NOT_WEIGHED and not _wholes(row, names):
            found.setdefault(evaluation.twins.get(name, name), row)
    return list(found.values())


def _wholes(row: ScoreRow, names: Set[str]) -> Set[str]:
    """Those of the names that the score is a part of."""
    name = row.score.name
    return names & {WHOLES.get(name, name), name.partition(".")[0]} - {name}


def _p_value(row: ScoreRow, other: str) -> float:
    """1 where the score by itself shows nothing, whatever the reason (too few rows)."""
    found, ours, theirs = row.against[other], row.sides["tuned"], row.sides[other]
    if found.verdict not in ("better", "worse"):
        return 1.0
    change = ours.value - theirs.value if found.difference is None else found.difference
    if found.interval is not None:
        return p_value(change, found.interval)
    if ours.interval is None or theirs.interval is None:
        return LEVEL
    # Evaluations of before: it leaves zero out where the intervals of both sides do not meet.
    low, high = ours.interval[0] - theirs.interval[1], ours.interval[1] - theirs.interval[0]
    return p_value(change, (low, high))


def _by_chance(evaluation: Evaluation) -> str:
    """How many scores differ by themselves in the table, and with all others do not."""
    rows = _weighed(evaluation, "base")
    counts = []
    for verdict in ("better", "worse"):
        alone = sum(row.against["base"].verdict == verdict for row in rows)
        if left := alone - len(_rows(evaluation, "base", verdict)):
            counts.append(f"{left} {verdict}")
    if not counts:
        return ""
    return (
        f" By itself the table finds {' and '.join(counts)} besides: among {len(rows)} scores "
        "chance may do that."
    )


def _reasons(
    evaluation: Evaluation,
    better: Sequence[ScoreRow],
    worse: Sequence[ScoreRow],
    faults: FaultShare | None,
) -> Iterator[str]:
    if unknown := not_measured(evaluation):
        yield unknown
    yield from not_enough(evaluation)
    if worse:
        yield f"worse than the base in {_listed(worse, most=len(worse))}"
    if prompted := _rows(evaluation, "prompted", "worse"):
        yield (
            "the base with a long prompt, which needs no training, is better in "
            f"{_listed(prompted, other='prompted', most=len(prompted))}"
        )
    if evaluation.answered and [row.score.name for row in better] == ["loss"]:
        yield "only its loss is shown to be better: no score of its answers is"
    yield from _gone(evaluation)
    if faults is not None and faults.of and faults.answers / faults.of > MOST_AT_FAULT:
        yield f"{faults.answers:,} of {faults.of:,} answers make a banned claim"
    yield from (_lost(ability) for ability in evaluation.forgotten if ability.matters)
    for words in evaluation.flattered:
        yield (
            f"{words}, which flatters it: hold others out (data.test), or ftcli eval --data FILE"
        )


def _gone(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.missing:
        yield f"{evaluation.missing}: what was found in the answers is not known"
    if evaluation.damage:
        yield f"eval/{evaluation.key}.json is damaged: not all of its figures are numbers"


def _lost(ability: Forgotten) -> str:
    words = f" ({ability.words})" if ability.words else ""
    return f"forgotten: {ability.label} {ability.before} → {ability.after}{words}"


def _stops(evaluation: Evaluation, said: Sequence[ScoreRow]) -> list[str]:
    row = evaluation.row("stop_rate")
    if row is None or "tuned" not in row.sides or row in said[:FEW_NAMED]:
        return []
    return [f"stops by itself in {row.sides['tuned'].shown(row.score)}"]


def _forgetting(evaluation: Evaluation) -> str:
    if not evaluation.forgotten:
        return "what it forgot was not measured"
    shown = [ability for ability in evaluation.forgotten if ability.is_shown]
    if not shown:
        return "nothing shown to be forgotten"
    listed = ", ".join(f"{a.label} {a.before} → {a.after}" for a in shown)
    return f"little forgotten ({listed})"


def _listed(rows: Sequence[ScoreRow], other: str = "base", most: int = FEW_NAMED) -> str:
    """`in the format (2% → 97%), loss (2.31 → 0.88) and 3 more`."""
    named = [_change(row, other) for row in rows[:most]]
    if len(rows) > most:
        named.append(f"{len(rows) - most} more")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _change(row: ScoreRow, other: str) -> str:
    before, after = row.sides[other].value, row.sides["tuned"].value
    return f"“{row.score.label}” ({row.score.shown(before)} → {row.score.shown(after)})"


def _advice(evaluation: Evaluation) -> str:
    """The fewest rows that would show anything among all scores, where the evaluation knows: it
    says how many show a score by itself."""
    rows = _weighed(evaluation, "base")
    wanted = []
    for row in rows:
        alone = row.against["base"].rows_to_show
        among = rows_among(alone, len(rows)) if alone else None
        if among is not None:
            wanted.append((among, row.score.label))
    if not wanted:
        return "hold more rows out, or train longer"
    fewest, label = min(wanted)
    among_all = f" among {len(rows)} scores" if len(rows) > 1 else ""
    return f"about {fewest:,} held-out rows would show the difference seen in “{label}”{among_all}"


def _capital(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"
