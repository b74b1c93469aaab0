"""Curves of a training, and what they show in a sentence."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ftcli.artifacts import RunFolder

# More points than this on one curve are more than a picture of this size has dots for.
MOST_POINTS = 600
# Few points are shown as dots too.
FEW_POINTS = 40
# Readable on a phone: at 335 px of width 9 pt of 281 pt are 10.7 px.
INCHES, FONT_POINTS = (3.9, 2.4), 9
# A gradient norm that spreads further is drawn on a logarithmic scale.
SPREAD = 30

Point = tuple[int, float]


@dataclass(frozen=True)
class Palette:
    """Colours of a picture, those of page.css."""

    ink: str
    edge: str
    curves: tuple[str, str]


LIGHT = Palette("#1f2328", "#d0d7de", ("#0860ca", "#b04600"))
DARK = Palette("#e6edf3", "#30363d", ("#6cb0ff", "#f0964e"))


@dataclass(frozen=True)
class Chart:
    """One picture: name of a curve → (step, value), ascending."""

    title: str
    unit: str
    curves: dict[str, tuple[Point, ...]]
    summary: str
    """What it shows, with figures."""


class Step(BaseModel):
    """A line of metrics.jsonl: a training step, or a validation."""

    model_config = ConfigDict(allow_inf_nan=False)

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None


class Timing(BaseModel):
    """A line of speed.jsonl."""

    step: int
    tokens: int
    seconds: float


Line = TypeVar("Line", bound=BaseModel)


def charts_of(run: RunFolder, problems: list[str]) -> tuple[Chart, ...]:
    """Loss, learning rate, gradient norm and speed, as far as they were recorded. Lines that
    cannot be read are left out, and named in `problems`."""
    steps = _lines(run.metrics, Step, problems)

    def points(value_of: Callable[[Step], float | None]) -> list[Point]:
        """Of a step that was done again the last line counts."""
        values = {line.step: value for line in steps if (value := value_of(line)) is not None}
        return sorted(values.items())

    losses = points(lambda line: line.loss)
    trained = {step for step, _ in losses}
    speeds = {
        line.step: line.tokens / line.seconds
        for line in _lines(run.speed, Timing, problems)
        if line.step in trained and line.seconds > 0
    }
    validation = points(lambda line: line.eval_loss)
    rates, norms = points(lambda line: line.learning_rate), points(lambda line: line.grad_norm)
    charts = (
        _chart("Loss", "nats per token", ".2f", {"training": losses, "validation": validation}),
        _chart("Learning rate", "", ".3g", {"rate": rates}),
        _chart("Gradient norm", "before clipping", ".2f", {"norm": norms}),
        _chart("Speed", "tokens per second", ",.0f", {"speed": sorted(speeds.items())}),
    )
    return tuple(chart for chart in charts if chart.curves)


def _lines(file: Path, kind: type[Line], problems: list[str]) -> list[Line]:
    found, broken = [], 0
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError:
            broken += 1
    if broken:
        problems.append(f"{file.name}: {broken:,} of its lines cannot be read and are left out")
    return found


def _chart(title: str, unit: str, form: str, curves: dict[str, list[Point]]) -> Chart:
    there = {name: points for name, points in curves.items() if points}
    words = "; ".join(_in_words(name, points, form) for name, points in there.items())
    shown = {name: thinned(points) for name, points in there.items()}
    return Chart(title, unit, shown, f"{words.capitalize()}.")


def _in_words(name: str, points: Sequence[Point], form: str) -> str:
    """`training 2.30 → 0.86, median 1.02, lowest 0.85 (step 53), highest 2.31 (step 1)`."""
    values = [value for _, value in points]
    if len(points) == 1:
        return f"{name} {values[0]:{form}}"
    low, high = (f(points, key=lambda point: point[1]) for f in (min, max))
    return (
        f"{name} {values[0]:{form}} → {values[-1]:{form}}, "
        f"median {statistics.median(values):{form}}, "
        f"lowest {low[1]:{form}} (step {low[0]:,}), highest {high[1]:{form}} (step {high[0]:,})"
    )


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """At most `most` (4 or more) of the points: both ends, and the lowest and the highest of each
    stretch between them, so that no peak is lost."""
    if len(points) <= most:
        return tuple(points)
    inner, stretches = points[1:-1], (most - 2) // 2
    kept = {points[0], points[-1]}
    for index in range(stretches):
        stretch = inner[len(inner) * index // stretches : len(inner) * (index + 1) // stretches]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return tuple(sorted(kept))


def draw(chart: Chart, palette: Palette) -> str:
    """SVG; the same chart gives the same text."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    edged = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    settings = {
        **dict.fromkeys(inked, palette.ink),
        **dict.fromkeys(edged, palette.edge),
        "svg.fonttype": "none",
        "svg.hashsalt": "ftcli",  # the same run gives the same bytes
        "font.size": FONT_POINTS,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    written = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        _plot(figure.add_subplot(), chart, palette)
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return written.getvalue()


def _plot(axes: Any, chart: Chart, palette: Palette) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

    # Without colour too the second curve is another than the first.
    styles = zip(palette.curves, ("-", "--"), strict=True)
    for (name, points), (colour, line) in zip(chart.curves.items(), styles, strict=False):
        few = len(points) == 1 or (name == "validation" and len(points) <= FEW_POINTS)
        marker = "o" if few else None
        axes.plot(*zip(*points, strict=True), line, label=name, color=colour, marker=marker)
    values = [value for points in chart.curves.values() for _, value in points]
    if chart.title == "Gradient norm" and 0 < SPREAD * min(values) < max(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(chart.unit)
    axes.grid(axis="y", linewidth=0.6, alpha=0.6)
    if len(chart.curves) > 1:
        axes.legend(frameon=False)
