"""`ftcli prepare RECIPE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.cli import options
from ftcli.console import Terminal, colours, result, result_json, wrapped
from ftcli.errors import UsageError

if TYPE_CHECKING:
    from ftcli.training.prepare import Piece


TRAINED, OTHER, END = "\x1b[32m", "\x1b[2m", "\x1b[0m"


def prepare(
    recipe: options.Recipe,
    preview: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show N rows with what is trained on.")
    ] = 0,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Ask the base 30 rows, with examples in its prompt and without."
        ),
    ] = False,
    shots: Annotated[
        int | None,
        typer.Option(
            metavar="K", min=1, help="Examples in the prompts of --probe and of a priced call (5)."
        ),
    ] = None,
    price_per_hour: options.PricePerHour = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Read, clean, split and tokenise the data.

    Every row that is not used is counted, and named with file, line and reason. Ends with advice:
    is fine-tuning the right thing for these rows?
    """
    from ftcli.training.prepare import SHOTS, Wanted, advice_lines, prepare_recipe, summary

    if shots is not None and not probe and price_per_hour is None:
        raise UsageError(
            "flag",
            "--shots says how many examples --probe and --price-per-hour put in a prompt; give one "
            "of them too",
        )
    wanted = Wanted(preview, probe, SHOTS if shots is None else shots, price_per_hour)
    found = prepare_recipe(recipe, overrides or (), wanted, Terminal())
    if json:
        result_json(found.as_json() | {"preview": [list(row) for row in found.preview]})
        return
    for row in found.preview:
        result(rendered(row, colours()))
        result("")
    if found.preview and not colours():
        result("⟦…⟧ is trained on, the rest is given.\n")
    for line in summary(found):
        result(wrapped(line))
    for line in advice_lines(found):
        result(wrapped(line))


def rendered(row: tuple[Piece, ...], coloured: bool) -> str:
    """Trained and untrained text told apart by colour, or by brackets."""
    if coloured:
        return "".join(f"{TRAINED if trained else OTHER}{text}{END}" for text, trained in row)
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in row)
