"""compare.png: held-out loss and trained parameters, a point a cell."""

from __future__ import annotations

from pathlib import Path

from ftcli.results import CompareResult
from ftcli.stages.compare.cells import METHODS, short_rate
from ftcli.stages.compare.wording import headline

# They differ with any colour vision (Okabe and Ito 2008); a method's is the same in every picture.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLOURS = dict(zip(METHODS, PALETTE, strict=True))


def draw(found: CompareResult, file: Path) -> None:
    """Write the picture; the rates that were not chosen are faint."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for cell in found.finished:
        loss = cell.scores["loss"]
        low, high = loss.interval
        axes.errorbar(
            cell.trained_parameters,
            loss.value,
            yerr=[[max(0.0, loss.value - low)], [max(0.0, high - loss.value)]],
            marker="o",
            linestyle="none",
            color=COLOURS[cell.method],
            alpha=1.0 if cell.chosen else 0.35,
            capsize=3,
            label=f"{cell.method} at {short_rate(cell.learning_rate)}",
        )
    base = found.base.scores["loss"].value
    axes.axhline(base, color="0.35", linestyle="--", linewidth=1, label="base")
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("held-out loss (95% interval)")
    axes.set_title(headline(found), fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=150)
