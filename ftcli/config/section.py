"""What every section of a recipe is made of: numbers with their limits, and the base class."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_boolean(value: object) -> object:
    """YAML's `true` would count as the number 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {str(value).lower()}")
    return value


# Above it neither NumPy takes a seed, nor Arrow a row's length.
LARGEST = 2**31 - 1

# Limits stand before the validator: behind it, pydantic leaves them out of the JSON Schema.
NO_BOOLEAN = BeforeValidator(_no_boolean)
PositiveCount = Annotated[int, Field(ge=1, le=LARGEST), NO_BOOLEAN]
CountFromZero = Annotated[int, Field(ge=0, le=LARGEST), NO_BOOLEAN]
Positive = Annotated[float, Field(gt=0), NO_BOOLEAN]
NotNegative = Annotated[float, Field(ge=0), NO_BOOLEAN]
Share = Annotated[float, Field(ge=0, lt=1), NO_BOOLEAN]
Rate = Annotated[float, Field(gt=0, lt=1), NO_BOOLEAN]


def require_regex(pattern: str, before: str = "") -> None:
    """Raises ValueError, with some words before it, where Python does not take the expression."""
    try:
        re.compile(pattern)
    # The last two: parentheses in parentheses without end, and numbers of repeats.
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{before}not a regular expression: {error}") from error


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
