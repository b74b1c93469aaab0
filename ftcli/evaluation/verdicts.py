"""An evaluation in words, the same in terminal, report and model card: cells of its table, its
verdict, and `--require`.

The first rule that applies decides the verdict:

1. the score that decides (`eval.decides_by`) is worse, or some scores are worse and none is better:
   not ready;
2. no score is better: not shown to be better;
3. there is a reason to check: check before use;
4. else: ready.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ftcli.console import counted
from ftcli.errors import UsageError, did_you_mean
from ftcli.evaluation.statistics import detectable_points, percent, wilson_interval
from ftcli.runs.results import Difference, EvalResult, Score, ScoreRow, Side

# Our own targets for the lower end of the interval: users notice one answer in twenty that never
# ends, one in ten that a program cannot read, one in five that is wrong.
TARGETS = {"stop_rate": 0.95, "format_rate": 0.90}
RIGHT_TARGET = 0.80
# Quantising to 4 bits raises the perplexity of a general text by more.
SUBSTANTIAL = 0.05
SLIGHTLY = "slightly higher"
NOT_MEASURED = "Nothing checked whether the answers are correct"
TO_MEASURE = "read some, or add eval.judge, eval.format (JSON, SQL) or --scores"
REPLAY = "General ability was lost: train again with data.replay: builtin"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
REQUIRED = re.compile(rf"\s*([\w.]+)\s*(?:(>=|<=|>|<)\s*({NUMBER})(%?)|:\s*(better|not-worse))\s*")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
Kind = Literal[
    "ready", "check", "not better", "not ready", "not compared", "not evaluated", "not finished"
]


@dataclass(frozen=True)
class RunVerdict:
    """The verdict on a tuned model."""

    kind: Kind
    headline: str
    sentence: str
    reasons: tuple[str, ...] = ()
    """What to check, one sentence each."""


def format_value(row: ScoreRow, score: Score | None) -> str:
    """`97%`, `1.77`; a perplexity is the exponential of its loss; `–` without a score."""
    return "–" if score is None else _number(row, score.value)


def format_interval(row: ScoreRow, score: Score) -> str:
    """`89 to 99%`."""
    low, high = (_number(row, end) for end in score.interval)
    return f"{low.removesuffix('%')} to {high}"


def _number(row: ScoreRow, value: float) -> str:
    if row.unit == "share":
        return percent(value)
    shown = math.exp(value) if row.unit == "perplexity" else value
    return f"{shown:,.{0 if abs(shown) >= 100 else 1 if abs(shown) >= 10 else 2}f}"


def format_difference(row: ScoreRow, found: Difference | None) -> str:
    """`+93 (82 to 97)` in percentage points; of a perplexity its change in percent."""
    if found is None:
        return ""
    value, *ends = (_signed(row, each) for each in (found.value, *found.interval))
    return f"{value} ({' to '.join(ends)})"


def _signed(row: ScoreRow, value: float) -> str:
    if row.unit == "perplexity":
        return f"{_with_sign(100 * math.expm1(value), 0)}%"
    return _with_sign(100 * value, 0) if row.unit == "share" else _with_sign(value, 2)


def _with_sign(value: float, decimals: int) -> str:
    shown = f"{value:+.{decimals}f}".replace("-", "−")
    return shown if float(shown.replace("−", "-")) else shown[1:]


def format_row_counts(found: Difference | None) -> str:
    """`56 / 0`: rows better and worse."""
    if found is None or found.rows_better is None:
        return ""
    return f"{found.rows_better} / {found.rows_worse}"


def verdict_word(row: ScoreRow, found: Difference | None) -> str:
    """`better`, `worse`, `not significant`; `slightly higher` of a perplexity worse by up to 5%."""
    if found is None or found.verdict is None:
        return ""
    if found.rows_better == found.rows_worse == 0:
        return "no row differs"
    is_worse = found.verdict == "worse" and row.unit == "perplexity"
    return SLIGHTLY if is_worse and not is_substantial(row) else found.verdict


def is_substantial(row: ScoreRow) -> bool:
    """Whether general ability is worse by more than 5%."""
    found = row.tuned_vs_base
    if found is None or found.verdict != "worse":
        return False
    lost = math.expm1(found.value) if row.unit == "perplexity" else -found.value
    return lost > SUBSTANTIAL


def summary_of(result: EvalResult) -> list[str]:
    """Sentences below the table."""
    found = []
    for other in ("base", "prompted"):
        if other in result.sides:
            name = "" if other == "base" else "against the base with a prompt: "
            found.append(f"{_capitalised(name + _better_and_worse(result, other))}.")
    if result.calls and not result.truth_measured_by:
        found.append(f"{NOT_MEASURED}: {TO_MEASURE}.")
    if needs_replay(result):
        found.append(f"{REPLAY}.")
    found += [f"{_capitalised(note)}." for note in result.notes]
    if any(row.unit == "share" for row in result.shown_rows) and "base" in result.sides:
        rows, points = counted(result.rows, "row"), detectable_points(result.rows)
        found.append(f"{rows} can show differences of {points} percentage points or more.")
    return found


def _better_and_worse(result: EvalResult, other: Side) -> str:
    parts = []
    for word in ("better", "worse", SLIGHTLY):
        rows = _with_verdict(result, other, "better" if word == "better" else "worse")
        if named := [row.label for row in rows if verdict_word(row, row.against(other)) == word]:
            parts.append(f"{word}: {join_words(named)}")
    return "; ".join(parts) or "no difference is significant"


def _with_verdict(result: EvalResult, other: Side, verdict: str) -> list[ScoreRow]:
    rows = result.shown_rows + (result.forgetting if other == "base" else ())
    pairs = [(row, row.against(other)) for row in rows]
    return [row for row, found in pairs if found is not None and found.verdict == verdict]


def join_words(names: Sequence[str]) -> str:
    """`a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def verdict_of(result: EvalResult) -> RunVerdict:
    """By the rules at the top of this file."""
    if "base" not in result.sides:
        sentence = f"Measured on {rows_in_words(result)}, without the base."
        return RunVerdict("not compared", "Not compared with its base", sentence)
    measured = f"Measured on {rows_in_words(result)}."
    sentence = f"{_capitalised(_better_and_worse(result, 'base'))}. {measured}"
    better = [row for row in _with_verdict(result, "base", "better") if row in result.scores]
    worse = _with_verdict(result, "base", "worse")
    decides = result.row(result.decides_by) if result.decides_by else None
    if decides is not None:
        better = [row for row in better if row is decides]
    if decides in worse or (worse and not better):
        return RunVerdict("not ready", "Not ready", sentence)
    if not better:
        return RunVerdict("not better", "Not shown to be better", sentence)
    reasons = tuple(_reasons(result, worse))
    if reasons:
        return RunVerdict("check", "Check before use", sentence, reasons)
    return RunVerdict("ready", "Ready", sentence)


def _reasons(result: EvalResult, worse: Sequence[ScoreRow]) -> Iterator[str]:
    if not result.calls:
        yield "No answer was scored: the rows are plain texts"
    elif not result.truth_measured_by:
        yield f"{NOT_MEASURED}: {TO_MEASURE} (docs/evaluation.md)"
    yield from _missed_targets(result)
    yield from _lost(result, worse)
    if prompted := [row.label for row in _with_verdict(result, "prompted", "worse")]:
        yield f"The base with a prompt, which needs no training, is better: {join_words(prompted)}"
    banned = result.row("banned_phrases")
    if banned is not None and banned.tuned is not None and banned.tuned.value > SUBSTANTIAL:
        yield f"{format_value(banned, banned.tuned)} of the answers have a banned phrase"
    yield from contaminated(result)


def _lost(result: EvalResult, worse: Sequence[ScoreRow]) -> Iterator[str]:
    for row in worse:
        if row not in result.forgetting or is_substantial(row):
            before, after = format_value(row, row.base), format_value(row, row.tuned)
            yield f"Worse than the base: {row.label} {before} → {after}"
    if not result.forgetting:
        yield "Whether general ability was lost was not measured"
    elif needs_replay(result):
        yield f"{REPLAY} (docs/forgetting.md)"


def needs_replay(result: EvalResult) -> bool:
    """Whether general ability was lost in a training without replay."""
    return result.replay is None and any(is_substantial(row) for row in result.forgetting)


def _missed_targets(result: EvalResult) -> Iterator[str]:
    targets = dict(TARGETS)
    targets |= dict.fromkeys(result.truth_measured_by[:1], RIGHT_TARGET)
    for name, target in targets.items():
        row = result.row(name)
        if row is None or row.tuned is None or row.unit != "share":
            continue
        low = row.tuned.interval[0]
        if low == row.tuned.interval[1]:  # all rows are equal: a bootstrap sees no variance
            hits = round(min(max(row.tuned.value, 0), 1) * row.tuned.n)
            low = wilson_interval(hits, row.tuned.n)[0]
        if low < target:
            short = "below" if row.tuned.value < target else "not shown to reach"
            shown = f"{format_value(row, row.tuned)} ({format_interval(row, row.tuned)})"
            yield f"{_capitalised(row.label)}: {shown} is {short} the target of {target:.0%}"


def contaminated(result: EvalResult) -> Iterator[str]:
    """Rows that the run has seen: the tuned model looks better on them than it is."""
    remedy = "set data.test, or name other rows (ftcli eval --data FILE)"
    if result.rows_trained_on:
        yield f"{_part(result, result.rows_trained_on)} ask what the run was trained on: {remedy}"
    if result.rows_in_validation:
        yield f"{_part(result, result.rows_in_validation)} chose the checkpoint: {remedy}"


def _part(result: EvalResult, rows: int) -> str:
    return "These rows" if rows >= result.rows else f"{rows:,} of {counted(result.rows, 'row')}"


def rows_in_words(result: EvalResult) -> str:
    """`60 held-out rows (test)`."""
    if result.data in ("test", "validation"):
        return f"{counted(result.rows, 'held-out row')} ({result.data})"
    return f"{counted(result.rows, 'row')} of {result.data}"


def _capitalised(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


@dataclass(frozen=True)
class Requirement:
    """One `--require`: `format>=0.9`, `loss:better`, `general_text:not-worse`."""

    text: str
    score: str
    sign: str
    """A comparison with `limit`, or the verdict against the base: `better`, `not-worse`."""
    limit: float = 0.0

    def failure(self, row: ScoreRow) -> str | None:
        """Why it is not met; None: it is."""
        if self.sign in COMPARE:
            if row.tuned is not None and COMPARE[self.sign](row.tuned.value, self.limit):
                return None
            return f"{row.label} is {format_value(row, row.tuned)}"
        verdict = row.tuned_vs_base.verdict if row.tuned_vs_base is not None else None
        if verdict == "better" or (self.sign == "not-worse" and verdict not in (None, "worse")):
            return None
        before, after = format_value(row, row.base), format_value(row, row.tuned)
        return f"{row.label} {before} → {after} is {verdict or 'not compared'}"


def requirements(written: Sequence[str]) -> list[Requirement]:
    """Parse `--require`; raises UsageError (`flag`)."""
    found = []
    for text in written:
        parts = REQUIRED.fullmatch(text)
        if parts is None:
            raise UsageError(
                "flag",
                f"--require {text}: expected a score with a limit (format>=0.9), or a verdict "
                "(loss:better, general_text:not-worse)",
            )
        name, sign, number, percent_sign, verdict = parts.groups()
        limit = float(number or 0) / (100 if percent_sign else 1)
        found.append(Requirement(text, name, sign or verdict, limit))
    return found


def failures(wanted: Sequence[Requirement], result: EvalResult) -> Iterator[str]:
    """Requirements that are not met; raises UsageError for a score that was not measured."""
    for each in wanted:
        # A unique prefix is enough (`format`: format_rate).
        near = [row for row in result.every_row if row.name.startswith(each.score)]
        row = result.row(each.score) or (near[0] if len(near) == 1 else None)
        if row is None:
            names = [row.name for row in result.every_row]
            raise UsageError(
                "flag",
                f"--require {each.text}: no score {each.score!r}"
                f"{did_you_mean(each.score, names)}; this evaluation has {', '.join(names)}",
            )
        if why := each.failure(row):
            yield f"--require {each.text}: {why}"
