"""Which method to take, as far as the held-out rows can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftcli.metrics.likelihood import Difference, Scored, difference
from ftcli.stages.compare.cells import short_rate
from ftcli.stages.compare.record import BaseRecord, CellRecord

# Percentile intervals of small samples are too narrow (Efron and Tibshirani 1993, chapter 14); with
# fewer rows than our own limit here nothing is told apart.
LEAST_ROWS = 10


@dataclass(frozen=True)
class Verdict:
    """`take` names a cell, or none where no method beats the base; `among`: those that are as good
    as the best as far as these rows can tell, the best first."""

    take: str | None
    among: tuple[str, ...]
    text: str


def best_rates(cells: Sequence[CellRecord]) -> tuple[CellRecord, ...]:
    """Of each method the cell with the lowest validation loss: the held-out rows choose none."""
    best: dict[str, CellRecord] = {}
    for cell in cells:
        rival = best.setdefault(cell.method, cell)
        if _validation(cell) < _validation(rival):
            best[cell.method] = cell
    return tuple(best.values())


def _validation(cell: CellRecord) -> float:
    return float("inf") if cell.validation_loss is None else cell.validation_loss


def judge(cells: Sequence[CellRecord], base: BaseRecord | None) -> Verdict:
    """The verdict on the best cell of each method; differences are of the same rows, in pairs."""
    best, *others = sorted(best_rates(cells), key=lambda cell: cell.loss)
    equal = [cell for cell in others if not _worse(best.tuned.rows, cell.tuned.rows)]
    among = tuple(cell.name for cell in (best, *equal))
    better = [cell for cell in (best, *equal) if _beats(cell, base)]
    if base is not None and not better:
        return Verdict(None, among, _nothing_gained(best, base))
    if equal:
        lightest = min(better, key=_weight)
        return Verdict(lightest.name, among, _level([best, *equal], lightest))
    return Verdict(best.name, among, _clear(best, others, base))


def _worse(best: Scored, other: Scored) -> bool:
    """Whether the rows tell that `other` loses more."""
    return len(best.losses) >= LEAST_ROWS and difference(best, other).interval[0] > 0


def _beats(cell: CellRecord, base: BaseRecord | None) -> bool:
    return base is None or _worse(cell.tuned.rows, base.side.rows)


def _weight(cell: CellRecord) -> tuple[int, int, float]:
    """Few trained weights, then little memory, then little time."""
    report = cell.training
    return report["trained_parameters"], report["peak_memory_bytes"], report["seconds"]


def _nothing_gained(best: CellRecord, base: BaseRecord) -> str:
    gained = base.side.scores["loss"] - best.loss
    rows = len(best.tuned.rows.losses)
    if rows < LEAST_ROWS:
        return (
            f"Take none of them yet: {rows} held-out rows tell nothing apart; hold out at least "
            f"{LEAST_ROWS} (data.test)."
        )
    return (
        f"Take none of them yet: the best, {_named(best)}, is not below the base on these {rows} "
        f"rows by more than chance gives (by {gained:.3f} of {base.side.scores['loss']:.3f}); "
        f"train for longer than {_steps(best)}, or try other learning rates."
    )


def _level(cells: Sequence[CellRecord], lightest: CellRecord) -> str:
    names = ", ".join(_named(cell) for cell in cells[:-1])
    rows = len(lightest.tuned.rows.losses)
    return (
        f"Take {_named(lightest)}: {names} and {_named(cells[-1])} cannot be told apart by their "
        f"held-out loss on {rows} rows, and it is the lightest of them that helps "
        f"({lightest.training['trained_parameters']:,} trained parameters). {_budget(cells)}"
    )


def _clear(best: CellRecord, others: Sequence[CellRecord], base: BaseRecord | None) -> str:
    if others:
        than, gap = _named(others[0]), difference(best.tuned.rows, others[0].tuned.rows)
        why = f"is below that of {than}, the next, by {_gap(gap)}"
    elif base is not None:
        gap = difference(best.tuned.rows, base.side.rows)
        why = f"is below the base's by {_gap(gap)}; there is no other method to compare it with"
    else:
        why = "is the only one there is"
    loss = f"its held-out loss of {best.loss:.3f}"
    return f"Take {_named(best)}: {loss} {why}. {_budget([best, *others])}"


def _gap(gap: Difference) -> str:
    low, high = gap.interval
    return f"{gap.value:.3f} (95% interval {low:.3f} to {high:.3f}, row by row)"


def _budget(cells: Sequence[CellRecord]) -> str:
    """What the verdict is good for."""
    counts = sorted({int(cell.training["steps"]) for cell in cells})
    steps = _steps(cells[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} steps"
    return (
        f"This holds for {steps} at these learning rates; a longer training or other rates may "
        "order them otherwise."
    )


def _steps(cell: CellRecord) -> str:
    steps = cell.training["steps"]
    return "1 step" if steps == 1 else f"{steps} steps"


def _named(cell: CellRecord) -> str:
    return f"{cell.method} at {short_rate(cell.learning_rate)}"
