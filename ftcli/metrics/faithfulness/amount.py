"""An amount of a text: a number with its unit or with what it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftcli.metrics.faithfulness.text import Text
from ftcli.metrics.faithfulness.units import Unit

Shape = Literal["one", "range", "set"]


Hedge = Literal["", "about", "over", "under"]


Direction = Literal["", "low", "high"]


@dataclass(frozen=True, slots=True)
class Value:
    """One number of an amount, with the units that it may have."""

    readings: tuple[float, ...]
    decimals: int
    units: tuple[Unit, ...] = ()


@dataclass(frozen=True, slots=True)
class Amount:
    """The tokens [first, after) that state an amount."""

    first: int
    after: int
    values: tuple[Value, ...]
    shape: Shape = "one"
    nouns: frozenset[str] = frozenset()
    """What is counted, and the word right before the number, each as `same_thing` names it."""
    hedge: Hedge = ""
    direction: Direction = ""
    in_words: bool = False
    is_group: bool = False
    """A word such as trio, which counts what the whole line names."""

    @property
    def has_unit(self) -> bool:
        return bool(self.values[-1].units)

    @property
    def is_one(self) -> bool:
        return self.shape == "one" and self.values[0].readings == (1.0,)


@dataclass(frozen=True)
class Scan:
    """How a text is read: as what was given, or as what claims."""

    text: Text
    hidden: frozenset[int] = frozenset()
    """Tokens of fixed expressions and of names."""
    given: bool = False
