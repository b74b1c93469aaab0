"""Good enough to ship: limits that a score's interval has to keep by its lower end.

Better than the base is not yet good: a model may be far better and wrong three times of four.
"""

from __future__ import annotations

from collections.abc import Iterator

from ftcli.metrics.intervals import share_interval
from ftcli.metrics.scores import MOST_ROWS_ADVISED
from ftcli.stages.report.evaluations import Evaluation
from ftcli.stages.report.scored import Measured, ScoreRow

# Limits of our own: one answer in twenty that never ends, one in ten that a program cannot read,
# or one in five that is wrong, is found by the first users.
LEAST = {"stop_rate": 0.95, "format_rate": 0.90}
LEAST_RIGHT = 0.80
NOT_MEASURED = "whether the answers are true was not measured"
# Whether an answer is right, said behind its share; the first that was measured counts. An exact
# match is one of labels alone: a right text may be worded otherwise.
OF_LABELS = "exact_match"
RIGHT = {
    "execution_match": "have the same result",
    "sql_match": "are spelt as the reference",
    "field_f1": "by field F1 against the reference",
    "field_accuracy": "of the fields are right",
    OF_LABELS: "have the label of the data",
}
OWN_NAMED = 3


def how_right(evaluation: Evaluation) -> list[str]:
    """`only 25% (11–47) have the same result`; where no score of ours tells whether answers are
    right, those of the user's own. Empty: nothing measured it."""
    row = _right(evaluation)
    if row is None:
        return _by_own_scores(evaluation)
    tuned = row.sides["tuned"]
    only = "only " if tuned.value < LEAST_RIGHT else ""
    return [f"{only}{tuned.shown(row.score, LEAST_RIGHT)} {RIGHT[row.score.name]}"]


def _by_own_scores(evaluation: Evaluation) -> list[str]:
    """`0.93 (0.90–0.95) in “names the product”, measured by you`."""
    own = [row for row in evaluation.scores if row.score.own and row.score.better]
    own = [row for row in own if "tuned" in row.sides]
    names = {row.score.name for row in own}
    own = [row for row in own if evaluation.twins.get(row.score.name) not in names]
    if not own:
        return []
    found = [f"{row.sides['tuned'].shown(row.score)} in “{row.score.label}”" for row in own]
    if len(own) > OWN_NAMED:
        found[OWN_NAMED:] = [f"{len(own) - OWN_NAMED} more"]
    return [*found, "measured by you"]


def not_measured(evaluation: Evaluation) -> str:
    """What to do where nothing measured whether the answers are right; empty: something did."""
    if how_right(evaluation):
        return ""
    if not evaluation.answered:
        return "nothing that it writes was measured: its rows are plain texts without answers"
    return (
        f"{NOT_MEASURED}: read some, or measure it by eval.format of type json or sql, or --scores"
    )


def not_enough(evaluation: Evaluation) -> Iterator[str]:
    """A reason to look for each limit that is not kept, or not shown to be."""
    right = _right(evaluation)
    rows = [(right, LEAST_RIGHT)] if right is not None else []
    for name, least in LEAST.items():
        row = evaluation.row(name)
        if row is not None and "tuned" in row.sides:
            rows.append((row, least))
    for row, least in rows:
        if words := _lacks(row, least):
            yield f"{row.score.label}: {words}"


def _right(evaluation: Evaluation) -> ScoreRow | None:
    rows = (evaluation.row(name) for name in RIGHT if name != OF_LABELS or evaluation.labels)
    return next((row for row in rows if row is not None and "tuned" in row.sides), None)


def _lacks(row: ScoreRow, least: float) -> str:
    tuned = row.sides["tuned"]
    shown, rows = tuned.shown(row.score, least), tuned.counted.rows
    if tuned.value < least:
        return f"only {shown}, where {least:.0%} is the least to ship with"
    low = _lower_end(tuned, rows)
    if low is None:
        return f"{shown} without its interval, which shows nothing"
    if low >= least and tuned.instead != "too few rows":
        return ""
    wanted = _rows_wanted(rows, tuned.value, low, least)
    more = f" (about {wanted:,})" if wanted is not None else ""
    return (
        f"{shown}, where {least:.0%} is the least to ship with: too few rows to say "
        f"({rows:,}): take more{more}"
    )


def _lower_end(measured: Measured, rows: int) -> float | None:
    """Of the interval; where resampling saw rows that are all alike, of a share of those rows."""
    if measured.interval is None or rows < 1:
        return None
    low, high = measured.interval
    if low < high:
        return low
    return share_interval(round(min(max(measured.value, 0), 1) * rows), rows)[0]


def _rows_wanted(rows: int, value: float, low: float, least: float) -> int | None:
    """With how many rows the same share would keep the limit.

    Wilson's lower end L of a share p of n rows solves (p - L)² n = z² L (1 - L).
    """
    if value <= least or not 0 < low < least:
        return None
    wanted = rows * least * (1 - least) / (value - least) ** 2 * (value - low) ** 2
    wanted = -int(-wanted // (low * (1 - low)))
    return wanted if rows < wanted <= MOST_ROWS_ADVISED else None
