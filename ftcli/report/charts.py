"""Curves of a training, each with a summary."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ftcli.console import counted
from ftcli.runs.folder import RunFolder

# Readable on a phone: at 335 px of width 9 pt of 281 pt are 10.7 px.
INCHES, FONT_POINTS = (3.9, 2.4), 9
# --first and --second of page.css, which inverts the pictures of a dark page.
COLOURS = ("#0860ca", "#b04600")
# A gradient norm with a larger max/min is drawn on a logarithmic scale.
SPREAD = 30

Point = tuple[int, float]


@dataclass(frozen=True)
class Chart:
    """One picture: name of a curve → (step, value), ascending."""

    title: str
    unit: str
    curves: dict[str, list[Point]]
    summary: str
    """In words, with figures."""


class Line(BaseModel):
    """A training step or a validation (metrics.jsonl), or the time of a step (speed.jsonl)."""

    model_config = ConfigDict(allow_inf_nan=False)

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: int | None = None
    seconds: float | None = None

    @property
    def speed(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None


def charts_of(run: RunFolder, problems: list[str]) -> tuple[Chart, ...]:
    """The recorded curves of loss, learning rate, gradient norm and speed. Unreadable lines are
    counted in `problems`."""
    steps = _lines(run.metrics, problems)
    losses = {"training": _points(steps, lambda line: line.loss)}
    trained = dict(losses["training"])
    losses["validation"] = _points(steps, lambda line: line.eval_loss)
    rates = {"rate": _points(steps, lambda line: line.learning_rate)}
    norms = {"norm": _points(steps, lambda line: line.grad_norm)}
    timed = [line for line in _lines(run.speed, problems) if line.step in trained]
    speeds = {"speed": _points(timed, lambda line: line.speed)}
    charts = (
        _chart("Loss", "nats per token", ".2f", losses),
        _chart("Learning rate", "", ".3g", rates),
        _chart("Gradient norm", "before clipping", ".2f", norms),
        _chart("Speed", "tokens per second", ",.0f", speeds),
    )
    return tuple(chart for chart in charts if chart.curves)


def _lines(file: Path, problems: list[str]) -> list[Line]:
    found, broken = [], 0
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            found.append(Line.model_validate_json(line))
        except ValidationError:
            broken += 1
    if broken:
        problems.append(f"{file.name}: {counted(broken, 'unreadable line')} left out")
    return found


def _points(lines: Sequence[Line], value_of: Callable[[Line], float | None]) -> list[Point]:
    """The last line of each step: a resumed run repeats steps."""
    values = {line.step: value for line in lines if (value := value_of(line)) is not None}
    return sorted(values.items())


def _chart(title: str, unit: str, form: str, curves: dict[str, list[Point]]) -> Chart:
    there = {name: points for name, points in curves.items() if points}
    words = "; ".join(_in_words(name, points, form) for name, points in there.items())
    return Chart(title, unit, there, f"{words.capitalize()}.")


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


def draw(chart: Chart) -> str:
    """Deterministic SVG."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ftcli",  # the same run gives the same bytes
        "path.simplify_threshold": 0.5,  # keeps each peak of many points, in few bytes
        "font.size": FONT_POINTS,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    written = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(xlabel="step", ylabel=chart.unit)
        # The curves also differ without colour.
        axes.set_prop_cycle(color=COLOURS, linestyle=("-", "--"))
        for name, points in chart.curves.items():
            few = len(points) == 1 or name == "validation"
            axes.plot(*zip(*points, strict=True), label=name, marker="." if few else None)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        values = [value for points in chart.curves.values() for _, value in points]
        if chart.title == "Gradient norm" and 0 < SPREAD * min(values) < max(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", alpha=0.4)
        if len(chart.curves) > 1:
            axes.legend(frameon=False)
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return written.getvalue()
