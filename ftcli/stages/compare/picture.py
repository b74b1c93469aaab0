"""compare.png: held-out loss against trained parameters, a labelled point a method.

matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftcli.stages.compare.cells import METHODS, short_rate
from ftcli.stages.compare.record import BaseRecord, CellRecord
from ftcli.stages.compare.result import Comparison

INCHES = (7.0, 4.5)
DOTS_PER_INCH = 150
# Told apart with any colour vision (Okabe and Ito 2008), a method's the same in every picture.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLOURS = dict(zip(METHODS, PALETTE, strict=True))
# Labels nearer than this to one another, in pixels, are moved apart.
LABEL_HEIGHT, LABEL_WIDTH = 22.0, 150.0


def draw(found: Comparison, file: Path) -> None:
    """Write the picture; no window and no state of its own is left behind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    best = [cell for cell in found.finished if cell.name in found.best_names]
    for cell in found.finished:
        _point(axes, cell, faint=cell not in best)
    if found.base is not None:
        _base_line(axes, found.base)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("held-out loss (95% interval)")
    axes.set_title(found.headline(), fontsize=10, loc="left")
    axes.margins(y=0.12)
    axes.set_xlim(*_range([cell.training["trained_parameters"] for cell in found.finished]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()
    _labels(axes, best)
    figure.savefig(file, dpi=DOTS_PER_INCH)


def _range(sizes: Sequence[int]) -> tuple[float, float]:
    """From a little below the least to so far above the greatest that its label has room."""
    decades = max(1.0, math.log10(max(sizes) / min(sizes)))
    return min(sizes) / 10 ** (0.08 * decades), max(sizes) * 10 ** (0.25 * decades)


def _point(axes: Any, cell: CellRecord, *, faint: bool) -> None:
    low, high = cell.loss_interval
    axes.errorbar(
        cell.training["trained_parameters"],
        cell.loss,
        yerr=[[max(0.0, cell.loss - low)], [max(0.0, high - cell.loss)]],
        marker="o",
        markersize=4 if faint else 7,
        color=COLOURS[cell.method],
        alpha=0.35 if faint else 1.0,
        elinewidth=1,
        capsize=0 if faint else 3,
    )


def _base_line(axes: Any, base: BaseRecord) -> None:
    loss = base.side.scores["loss"]
    axes.axhline(loss, color="0.35", linestyle="--", linewidth=1)
    axes.annotate(
        f"base {loss:.2f}",
        (0, loss),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        color="0.35",
        fontsize=9,
    )


def _labels(axes: Any, cells: Sequence[CellRecord]) -> None:
    """To the right of each point; where points stand close, the labels are moved up."""
    places: list[tuple[float, float]] = []
    for cell in sorted(cells, key=lambda cell: cell.loss):
        point = (cell.training["trained_parameters"], cell.loss)
        x, y = axes.transData.transform(point)
        for other_x, other_y in places:
            if abs(other_x - x) < LABEL_WIDTH and y - other_y < LABEL_HEIGHT:
                y = other_y + LABEL_HEIGHT
        places.append((x, y))
        axes.annotate(
            f"{cell.method} {short_rate(cell.learning_rate)}",
            point,
            xytext=axes.transData.inverted().transform((x + 10, y)),
            fontsize=9,
            fontweight="bold",
            color=COLOURS[cell.method],
            verticalalignment="center",
        )
