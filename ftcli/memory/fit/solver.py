"""The cheapest changes that make a training fit a card, and what would do where none does."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from pathlib import Path

from ftcli.errors import ModelError
from ftcli.memory import Choices, Estimate
from ftcli.memory.fit.asked import Asked, options_of, require_mode
from ftcli.memory.fit.bound import estimate_on, fits
from ftcli.memory.fit.changes import Change, as_change, steps
from ftcli.memory.fit.search import Fits, cheapest, some_way_fits
from ftcli.memory.hardware import KNOWN_CARDS, Card, Hardware
from ftcli.memory.shapes import Shape, find_shape

# One well-known model of each size, the largest first: what to turn to where nothing else fits.
SMALLER_MODELS = (
    "llama-3.1-70b",
    "qwen2.5-32b",
    "qwen2.5-14b",
    "llama-3.1-8b",
    "qwen2.5-7b",
    "qwen2.5-3b",
    "qwen2.5-1.5b",
    "qwen2.5-0.5b",
    "smollm2-360m",
    "smollm2-135m",
)


@dataclass(frozen=True)
class Fitted:
    """The way of least cost, as the plan of `ftcli train` takes it."""

    choices: Choices
    estimate: Estimate
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Instead:
    """What would do where nothing fits; None where nothing known does."""

    card: str | None
    """The smallest known card that takes it with all its tokens, if not as it is."""
    model: str | None
    """The largest well-known model that fits the card with nothing else changed."""


def fit(asked: Asked, hardware: Hardware) -> Fitted | None:
    """The cheapest changes with which the training fits; raises ModelError (`method_refused`)."""
    require_mode(asked.choices.mode, asked.shape)
    found = cheapest(asked.choices, options_of(asked, hardware), _fits(asked, hardware))
    if found is None:
        return None
    changes = tuple(
        as_change(step, estimate_on(asked.shape, step.choices, hardware))
        for step in steps(asked, found)
    )
    return Fitted(found, estimate_on(asked.shape, found, hardware), changes)


def _fits(asked: Asked, hardware: Hardware) -> Fits:
    return lambda way: fits(estimate_on(asked.shape, way, hardware), hardware)


def instead(asked: Asked, hardware: Hardware) -> Instead:
    """What to turn to where nothing fits."""
    return Instead(_larger_card(asked, hardware), _smaller_model(asked, hardware))


def _larger_card(asked: Asked, hardware: Hardware) -> str | None:
    larger = sorted(
        (card for card in KNOWN_CARDS if card.usable_bytes > hardware.usable_bytes),
        key=lambda card: card.usable_bytes,
    )

    def takes_it(card: Card) -> bool:
        options, tokens = options_of(asked, card.hardware), asked.choices.seq_len
        return some_way_fits(asked.choices, options, tokens, _fits(asked, card.hardware))

    first = bisect_left(larger, True, key=takes_it)
    return larger[first].name if first < len(larger) else None


def _smaller_model(asked: Asked, hardware: Hardware) -> str | None:
    for name in SMALLER_MODELS:
        shape = find_shape(name, Path())
        if shape.parameters < asked.shape.parameters and _fits_as_asked(shape, asked, hardware):
            return name
    return None


def _fits_as_asked(shape: Shape, asked: Asked, hardware: Hardware) -> bool:
    """With the recipe's own targets where the model has them, else with all.

    Where it lacks layers or modules that have a rank of their own, nothing is as asked.
    """
    modules = shape.linear_modules()
    targets = asked.choices.targets
    known = targets == "all-linear" or all(name.rsplit(".", 1)[-1] in modules for name in targets)
    choices = asked.choices if known else replace(asked.choices, targets="all-linear")
    try:
        return fits(estimate_on(shape, choices, hardware), hardware)
    except ModelError:
        return False
