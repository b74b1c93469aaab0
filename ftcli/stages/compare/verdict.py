"""Which method to take: paired differences of the held-out loss, corrected for all pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ftcli.metrics.scores import FEWEST_ROWS, Counts, compare, holm, verdict_of
from ftcli.results import ComparedCell, Difference
from ftcli.stages.compare.cells import short_rate
from ftcli.stages.evaluate.wording import listed

BASE = ""


@dataclass(frozen=True)
class Decision:
    """Cells with their differences; which to take, and those that are as good; a sentence."""

    cells: tuple[ComparedCell, ...]
    take: str | None
    among: tuple[str, ...]
    text: str


def decide(
    cells: Sequence[ComparedCell], losses: Mapping[str, Counts], base: Counts, seed: int
) -> Decision:
    """`losses`: of each cell's name the summed loss and the tokens of each held-out row."""
    chosen = sorted(_best_rates(cells), key=lambda cell: losses[cell.name].value)
    names = [cell.name for cell in chosen]
    pairs = _pairs({BASE: base} | {name: losses[name] for name in names})
    with_differences = {
        name: {"chosen": True, "vs_base": pairs[BASE, name], "vs_best": pairs.get((names[0], name))}
        for name in names
    }
    best, *others = [cell.model_copy(update=with_differences[cell.name]) for cell in chosen]
    equal = [cell for cell in others if cell.vs_best and cell.vs_best.verdict != "worse"]
    helpful = [cell for cell in (best, *equal) if cell.vs_base and cell.vs_base.verdict == "better"]
    take = min(helpful, key=_weight) if helpful else None
    return Decision(
        tuple(cell.model_copy(update=with_differences.get(cell.name, {})) for cell in cells),
        take.name if take else None,
        tuple(cell.name for cell in (best, *equal)),
        _text(take, best, others, equal, seed),
    )


def _best_rates(cells: Sequence[ComparedCell]) -> list[ComparedCell]:
    """Of each method the cell with the lowest validation loss: the held-out rows choose none."""

    def validation(cell: ComparedCell) -> float:
        return math.inf if cell.validation_loss is None else cell.validation_loss

    methods = dict.fromkeys(cell.method for cell in cells)
    return [min((c for c in cells if c.method == method), key=validation) for method in methods]


def _pairs(losses: Mapping[str, Counts]) -> dict[tuple[str, str], Difference]:
    """(first, second) in the mapping's order → the loss of the second less that of the first."""
    pairs = combinations(losses, 2)
    compared = {(a, b): compare(losses[a], losses[b]) for a, b in pairs}
    found = {pair: each for pair, each in compared.items() if each is not None}
    # Of all pairs, since which of them is the best is seen on the same rows.
    significant = holm([each.p_value for each in found.values()])
    return {
        pair: Difference(
            value=each.difference,
            interval=each.interval,
            n=each.n,
            rows_better=each.rows_lower,
            rows_worse=each.rows_higher,
            p_value=each.p_value,
            verdict=verdict_of(each, "lower", significant=holds),
        )
        for (pair, each), holds in zip(found.items(), significant, strict=True)
    }


def _weight(cell: ComparedCell) -> tuple[int, int, float]:
    """Few trained weights, then little memory, then little time."""
    return cell.trained_parameters, cell.peak_memory_bytes, cell.seconds


def _text(
    take: ComparedCell | None,
    best: ComparedCell,
    others: Sequence[ComparedCell],
    equal: Sequence[ComparedCell],
    seed: int,
) -> str:
    gain, loss = best.vs_base, best.scores["loss"].value
    assert gain is not None
    with_seed = f"with this seed ({seed})"
    if gain.verdict == "too few rows":
        return (
            f"Take none of them yet: {gain.n} held-out rows are too few for a verdict; hold out at "
            f"least {FEWEST_ROWS} (data.test)."
        )
    if take is None:
        return (
            f"Take none of them yet: {with_seed} no method is significantly better than the base "
            f"on {gain.n} rows; the loss of the best, {_named(best)}, differs from the base's by "
            f"{_shown(gain)}. Train for longer than {_steps([best])}, or try other learning rates."
        )
    if equal:
        verb = "is" if len(equal) == 1 else "are"
        why = (
            f"{with_seed} {listed([_named(cell) for cell in equal])} {verb} not significantly "
            f"worse than {_named(best)}, which has the lowest held-out loss ({loss:.3f}), on "
            f"{gain.n} rows; of those that are better than the base, {_named(take)} is the "
            f"lightest ({take.trained_parameters:,} trained parameters)"
        )
    elif others:
        gap = others[0].vs_best
        assert gap is not None
        why = (
            f"{with_seed} its held-out loss of {loss:.3f} is better than that of every other "
            f"method; that of {_named(others[0])}, the next, is worse by {_shown(gap)}"
        )
    else:
        why = (
            f"{with_seed} its held-out loss of {loss:.3f} is better than the base's, by "
            f"{_shown(gain, -1)}; no other method was trained"
        )
    return (
        f"Take {_named(take)}: {why}. This holds for {_steps([best, *others])} at these learning "
        "rates; a longer training, other rates or another seed may order them otherwise."
    )


def _shown(found: Difference, sign: int = 1) -> str:
    low, high = sorted(sign * end for end in found.interval)
    return f"{sign * found.value:.3f} (95% interval {low:.3f} to {high:.3f}, row by row)"


def _steps(cells: Sequence[ComparedCell]) -> str:
    counts = sorted({cell.steps for cell in cells})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} steps"
    return "1 step" if counts == [1] else f"{counts[0]} steps"


def _named(cell: ComparedCell) -> str:
    return f"{cell.method} at {short_rate(cell.learning_rate)}"
