"""Arguments and flags that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer


def _cost(value: float | None) -> float | None:
    """Raises BadParameter for what no hour can cost."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"expected a cost of 0 or more, found {value:g}")
    return value


Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file, or a run folder.")
]
Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder, or the recipe (its newest finished run)."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."),
]
CostPerHour = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        callback=_cost,
        help="Time a few steps and calls here, and say what run and calls cost.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
