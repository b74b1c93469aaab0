"""Which method to take: paired differences of the held-out loss, corrected for all pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ftcli.evaluation.compare.cells import named
from ftcli.evaluation.scores import FEWEST_ROWS, Counts, compare, holm, verdict_of
from ftcli.evaluation.wording import listed
from ftcli.runs.results import ComparedCell, Difference

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
    # Of each method the rate with the lowest validation loss: the held-out rows choose none.
    lowest_last = sorted(cells, key=lambda cell: cell.validation_loss or 0.0, reverse=True)
    best_rates = {cell.method: cell for cell in lowest_last}.values()
    chosen = sorted(best_rates, key=lambda cell: losses[cell.name].value)
    names = [cell.name for cell in chosen]
    pairs = _pairs({BASE: base} | {name: losses[name] for name in names})
    judged = {
        cell.name: cell.model_copy(
            update={
                "chosen": True,
                "vs_base": pairs[BASE, cell.name],
                "vs_best": pairs.get((names[0], cell.name)),
            }
        )
        for cell in chosen
    }
    best, *others = judged.values()
    equal = [cell for cell in others if cell.vs_best and cell.vs_best.verdict != "worse"]
    helpful = [cell for cell in (best, *equal) if cell.vs_base and cell.vs_base.verdict == "better"]
    # Few trained weights, then little memory, then little time.
    take = min(
        helpful,
        key=lambda cell: (cell.trained_parameters, cell.peak_memory_bytes, cell.seconds),
        default=None,
    )
    return Decision(
        tuple(judged.get(cell.name, cell) for cell in cells),
        take.name if take else None,
        tuple(cell.name for cell in (best, *equal)),
        _text(take, best, others, equal, seed),
    )


def _pairs(losses: Mapping[str, Counts]) -> dict[tuple[str, str], Difference]:
    """(first, second) in the mapping's order → the loss of the second less that of the first."""
    pairs = combinations(losses, 2)
    compared = {(a, b): compare(losses[a], losses[b]) for a, b in pairs}
    found = {pair: each for pair, each in compared.items() if each is not None}
    # Of all pairs, since which of them is the best is seen on the same rows.
    significant = holm([each.p_value for each in found.values()])
    return {
        pair: Difference(
            verdict=verdict_of(each, "lower", significant=holds),
            p_value=each.p_value,
            value=each.difference,
            interval=each.interval,
            n=each.n,
            rows_better=each.rows_lower,
            rows_worse=each.rows_higher,
        )
        for (pair, each), holds in zip(found.items(), significant, strict=True)
    }


def _text(
    take: ComparedCell | None,
    best: ComparedCell,
    others: Sequence[ComparedCell],
    equal: Sequence[ComparedCell],
    seed: int,
) -> str:
    gain, loss = best.vs_base, f"{best.scores['loss'].value:.3f}"
    assert gain is not None
    if gain.verdict == "too few rows":
        return (
            f"Take none of them yet: {gain.n} held-out rows are too few for a verdict; hold out at "
            f"least {FEWEST_ROWS} (data.test)."
        )
    if take is None:
        return (
            f"Take none of them yet: with this seed ({seed}) no method is significantly better "
            f"than the base on {gain.n} rows; the loss of the best, {named(best)}, differs from "
            f"the base's by {_shown(gain)}. Train for longer than {_steps([best])}, or try other "
            "learning rates."
        )
    if equal:
        why = (
            f"{listed([named(cell) for cell in equal])} {'is' if len(equal) == 1 else 'are'} not "
            f"significantly worse than {named(best)}, which has the lowest held-out loss "
            f"({loss}), on {gain.n} rows; of those that are better than the base, {named(take)} "
            f"is the lightest ({take.trained_parameters:,} trained parameters)"
        )
    else:
        than = f"the base's, by {_shown(gain, -1)}; no other method was trained"
        if others:
            next_best, gap = named(others[0]), _shown(others[0].vs_best)
            than = f"that of every other method; that of {next_best}, the next, is worse by {gap}"
        why = f"its held-out loss of {loss} is better than {than}"
    return (
        f"Take {named(take)}: with this seed ({seed}) {why}. This holds for "
        f"{_steps([best, *others])} at these learning rates; a longer training, other rates or "
        "another seed may order them otherwise."
    )


def _shown(found: Difference | None, sign: int = 1) -> str:
    assert found is not None
    low, high = sorted(sign * end for end in found.interval)
    return f"{sign * found.value:.3f} (95% interval {low:.3f} to {high:.3f}, row by row)"


def _steps(cells: Sequence[ComparedCell]) -> str:
    counts = {min(cell.steps for cell in cells), max(cell.steps for cell in cells)}
    return f"{' to '.join(map(str, sorted(counts)))} steps"
