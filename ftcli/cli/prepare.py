"""`ftcli prepare RECIPE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.cli import options
from ftcli.console import Terminal, colours, result, result_json

if TYPE_CHECKING:
    from ftcli.stages.prepare import Piece


TRAINED, OTHER, END = "\x1b[32m", "\x1b[2m", "\x1b[0m"


def prepare(
    recipe: options.Recipe,
    preview: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show N rows with what is trained on.")
    ] = 0,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Read, clean, split and tokenise the data.

    Every row that is not used is counted, and named with file, line and reason.
    """
    from ftcli.stages.prepare import prepare_recipe, summary

    found = prepare_recipe(recipe, overrides or (), preview, Terminal())
    if json:
        result_json(found.as_json() | {"preview": [list(row) for row in found.preview]})
        return
    for row in found.preview:
        result(rendered(row, colours()))
        result("")
    if found.preview and not colours():
        result("⟦…⟧ is trained on, the rest is given.\n")
    for line in summary(found):
        result(line)


def rendered(row: tuple[Piece, ...], coloured: bool) -> str:
    """Trained and untrained text told apart by colour, or by brackets."""
    if coloured:
        return "".join(f"{TRAINED if trained else OTHER}{text}{END}" for text, trained in row)
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in row)
