"""Arguments, flags and output that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer

from ftcli.console import print_json


class JsonResult(Protocol):
    """What a command found."""

    def as_json(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=JsonResult)


def print_found(found: T, show: Callable[[T], None], *, json: bool) -> None:
    """Print what a command found: as one JSON object, or with `show`."""
    if json:
        print_json(found.as_json())
    else:
        show(found)


def _cost(value: float | None) -> float | None:
    """Raises BadParameter for a negative or infinite cost."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"expected a cost of 0 or more, found {value:g}")
    return value


Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML), or a run folder.")]
Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder, or a recipe (its newest finished run)."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable."),
]
CostPerHour = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        callback=_cost,
        help="Cost of an hour; times a few steps and calls, and shows what run and calls cost.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
