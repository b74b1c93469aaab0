"""Curves of a training, thinned to what a picture can show, and what they say in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ftcli.stages.report.plain import Plain, number

# More points than this on one curve are more than a picture of this size has dots for.
MOST_POINTS = 1000
# Rows of the table under a picture.
TABLE_ROWS = 12

Point = tuple[int, float]


@dataclass(frozen=True)
class Curve:
    """One line of a picture: (step, value), ascending."""

    label: str
    points: tuple[Point, ...]
    marked: bool = False
    """Few points, each shown as a dot."""


@dataclass(frozen=True)
class Chart:
    """One picture with its text alternative."""

    key: str
    title: str
    unit: str
    curves: tuple[Curve, ...]
    summary: str
    """What the picture shows, in a sentence with figures."""
    logarithmic: bool = False

    def table(self) -> list[tuple[int, tuple[float | None, ...]]]:
        """A few steps from first to last, with each curve's value there."""
        chosen: set[int] = set()
        for curve in self.curves:
            steps = [step for step, _ in curve.points]
            chosen.update(steps if len(steps) <= TABLE_ROWS else _spread(steps, TABLE_ROWS))
        values = [dict(curve.points) for curve in self.curves]
        return [(step, tuple(v.get(step) for v in values)) for step in sorted(chosen)]


def charts_of(
    records: Sequence[Plain], speeds: Sequence[Plain], best_step: int | None
) -> list[Chart]:
    """Loss, learning rate, gradient norm and tokens a second, as far as they were recorded."""
    found = [
        _loss(_points(records, "loss"), _points(records, "eval_loss"), best_step),
        _learning_rate(_points(records, "learning_rate")),
        _gradient_norm(_points(records, "grad_norm")),
        _speed(_speeds(records, speeds)),
    ]
    return [chart for chart in found if chart is not None]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """At most `most` of the points; the least and the greatest of each stretch stay, as do both
    ends, so that no peak is lost."""
    if len(points) <= most:
        return tuple(points)
    stretches = max(1, (most - 2) // 2)
    inner = points[1:-1]
    kept: list[Point] = [points[0]]
    for index in range(stretches):
        stretch = inner[len(inner) * index // stretches : len(inner) * (index + 1) // stretches]
        lowest = min(stretch, key=lambda point: point[1])
        highest = max(stretch, key=lambda point: point[1])
        kept += sorted({lowest, highest})
    return (*kept, points[-1])


def _points(records: Iterable[Plain], name: str) -> list[Point]:
    """Of a step that stands twice the last line counts; what is no number is left out."""
    found: dict[int, float] = {}
    for record in records:
        step, value = number(record.get("step")), number(record.get(name))
        if step is not None and value is not None:
            found[int(step)] = value
    return sorted(found.items())


def _speeds(records: Sequence[Plain], speeds: Iterable[Plain]) -> list[Point]:
    """Tokens a second of the steps that the run is made of."""
    trained: Mapping[int, float] = dict(_points(records, "loss"))
    found: dict[int, float] = {}
    for line in speeds:
        step, tokens, seconds = (number(line.get(key)) for key in ("step", "tokens", "seconds"))
        if step is not None and step in trained and tokens is not None and seconds:
            found[int(step)] = tokens / seconds
    return sorted(found.items())


def _loss(train: list[Point], validation: list[Point], best_step: int | None) -> Chart | None:
    if not train and not validation:
        return None
    parts, curves = [], []
    if train:
        curves.append(Curve("training", thinned(train)))
        parts.append(f"training loss {_from_to(train, '.2f')} over {_steps(train)}")
    if validation:
        curves.append(Curve("validation", thinned(validation), marked=len(validation) <= 40))
        best = f", the best at step {best_step}" if best_step else ""
        parts.append(f"validation loss {_from_to(validation, '.2f')}{best}")
    return Chart("loss", "Loss", "nats a token", tuple(curves), _sentence(parts))


def _learning_rate(points: list[Point]) -> Chart | None:
    if not points:
        return None
    step, peak = max(points, key=lambda point: point[1])
    words = f"learning rate up to {peak:.3g} (step {step}), {points[-1][1]:.3g} at the end"
    curve = Curve("learning rate", thinned(points))
    return Chart("rate", "Learning rate", "", (curve,), _sentence([words]))


def _gradient_norm(points: list[Point]) -> Chart | None:
    if not points:
        return None
    step, peak = max(points, key=lambda point: point[1])
    words = (
        f"gradient norm before clipping: median {_median(points):.2f}, greatest {peak:.2f} "
        f"(step {step})"
    )
    values = [value for _, value in points]
    far = min(values) > 0 and max(values) > 30 * min(values)
    curve = Curve("gradient norm", thinned(points))
    return Chart("norm", "Gradient norm", "", (curve,), _sentence([words]), logarithmic=far)


def _speed(points: list[Point]) -> Chart | None:
    if not points:
        return None
    slowest = min(value for _, value in points)
    fastest = max(value for _, value in points)
    words = f"tokens a second: median {_median(points):,.0f}, {slowest:,.0f} to {fastest:,.0f}"
    curve = Curve("tokens a second", thinned(points))
    return Chart("speed", "Speed", "tokens a second", (curve,), _sentence([words]))


def _from_to(points: list[Point], form: str) -> str:
    first, last = points[0][1], points[-1][1]
    return f"{first:{form}} → {last:{form}}" if len(points) > 1 else f"{last:{form}}"


def _steps(points: list[Point]) -> str:
    return f"{len(points):,} step{'s' if len(points) != 1 else ''}"


def _median(points: list[Point]) -> float:
    values = sorted(value for _, value in points)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _sentence(parts: list[str]) -> str:
    whole = "; ".join(parts)
    return f"{whole[:1].upper()}{whole[1:]}."


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """`most` of the steps at even distances, both ends among them."""
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]
