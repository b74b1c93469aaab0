"""How far measured runs lay from their estimates, and the interval that follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from ftcli.memory.choices import MODE_NAMES, Choices

Figure = Literal["allocated", "card"]
"""What tensors hold; or what the allocator reserves or nvidia-smi shows."""

RESIDUALS = Path(__file__).with_name("residuals.json")

# A kind with fewer runs than this is judged by all methods of its figure and stack together.
FEWEST_RUNS = 8
# An interval is never narrower than this, however well a few runs agree.
_WIDEST_LOW = 0.95
_LEAST_HIGH = 1.12
_BEYOND_HIGHEST = 1.02
_LEFT_OUT_BELOW = 0.1


@dataclass(frozen=True)
class Residuals:
    """Measured / estimated over the runs of one kind: the estimate times `low` and `high` is the
    interval."""

    figure: Figure
    group: str
    like_ours: bool
    runs: int
    median_error: float
    low: float
    high: float

    @property
    def rests_on(self) -> str:
        stack = "a like stack" if self.like_ours else "older stacks"
        runs = f"{self.runs} measured runs of {self.group} on {stack}"
        return f"{runs}, median error {self.median_error:.1%}"


def group_of(choices: Choices) -> str:
    """The methods that are judged together: by formula, by virtual tokens, and those that have no
    formula here."""
    if choices.mode in ("prefix", "prompt"):
        return "prefix and prompt tuning"
    if choices.stack.trained_parameters is not None:
        return "other adapters"
    return MODE_NAMES[choices.mode]


POOLED = "full fine-tuning, LoRA and QLoRA"


def residuals_of(choices: Choices, figure: Figure) -> Residuals:
    """The residuals that an estimate of these choices is judged by.

    A kind with few runs is judged by the pooled ones too: the wider bound of the two.
    """
    kinds = {(kind.figure, kind.group, kind.like_ours): kind for kind in _known_residuals()}
    like_ours = choices.stack.like_ours
    own = kinds.get((figure, group_of(choices), like_ours))
    pooled = kinds[figure, POOLED, like_ours]
    if own is None:
        return pooled
    if own.runs >= FEWEST_RUNS:
        return own
    return replace(pooled, low=min(own.low, pooled.low), high=max(own.high, pooled.high))


@cache
def _known_residuals() -> tuple[Residuals, ...]:
    return tuple(Residuals(**kind) for kind in json.loads(RESIDUALS.read_text())["kinds"])


def residuals(figure: Figure, group: str, like_ours: bool, ratios: Sequence[float]) -> Residuals:
    """From measured / estimated of each run.

    An estimate that says "fits" and runs out of memory is the worst failure: the upper bound lies
    above every run, the lower leaves out one in ten.
    """
    ordered = sorted(ratios)
    errors = sorted(abs(1 / ratio - 1) for ratio in ratios)
    middle = len(errors) // 2
    median = errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2
    low = ordered[int(_LEFT_OUT_BELOW * (len(ordered) - 1))]
    return Residuals(
        figure=figure,
        group=group,
        like_ours=like_ours,
        runs=len(ordered),
        median_error=round(median, 4),
        low=round(min(low, _WIDEST_LOW), 3),
        high=round(max(_BEYOND_HIGHEST * ordered[-1], _LEAST_HIGH), 3),
    )


def as_plain(kind: Residuals) -> dict[str, object]:
    return asdict(kind)
