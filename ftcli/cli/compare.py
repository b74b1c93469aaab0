"""`ftcli compare RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.cli import options
from ftcli.console import (
    Terminal,
    print_json,
    print_result,
    print_table,
    shown_path,
    width,
    wrapped,
)
from ftcli.errors import UsageError

if TYPE_CHECKING:
    from ftcli.runs.results import CompareResult

# Terminal columns that the whole table needs.
WIDE = 110
# Columns that a narrower terminal goes without, the first ones first.
DROPPED = (
    "tokens/s",
    "file size",
    "trainable parameters",
    "peak memory",
    "learning rate",
    "general text",
    "time",
)
SHORT = {
    "learning rate": "rate",
    "held-out loss": "loss",
    "format valid": "format",
    "finished (EOS)": "EOS",
    "general text": "general",
    "trainable parameters": "trainable",
    "peak memory": "peak",
    "file size": "file",
}


def compare(
    recipe: options.Recipe,
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B,…",
            help="Methods to compare; the recipe's `method:` keys apply to its own method only.",
        ),
    ] = "full,lora,qlora,bottleneck,prefix-tuning,prompt-tuning",
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Optimizer steps of each method.")
    ] = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,…", help="Rates to try with each method; validation rows choose."
        ),
    ] = None,
    general_text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plain text to measure forgetting with."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Evaluate the first N held-out rows.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new folder.")] = False,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train several methods, and recommend one.

    All methods have the same rows, seed, evaluation and number of steps. A learning rate in the
    recipe applies to its own method; the others take their defaults. Ctrl-C stops; the same command
    resumes, without training a finished method again. Writes compare.json, compare.md and
    compare.png into <output>-compare.
    """
    from ftcli.evaluation.compare.cells import CompareOptions, require_methods
    from ftcli.evaluation.compare.comparison import compare_recipe

    asked = CompareOptions(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        methods=require_methods(_listed(methods)),
        learning_rates=_rates(learning_rates),
        steps=steps,
        general_text=general_text,
        limit=limit,
        fresh=fresh,
    )
    found = compare_recipe(asked, Terminal())
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        show(found)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _rates(text: str | None) -> tuple[float, ...]:
    """Each rate once; the recipe's schema checks their range."""
    try:
        return tuple(dict.fromkeys(float(part) for part in _listed(text or "")))
    except ValueError as error:
        message = f"--learning-rates {text}: expected numbers, e.g. 1e-4,1e-3"
        raise UsageError("flag", message) from error


def show(found: CompareResult) -> None:
    """Print a comparison: one table, its notes and the verdict."""
    from ftcli.evaluation.compare.compare_page import headline, notes, table_rows

    print_result(wrapped(headline(found), ""))
    rows = table_rows(found)
    heads, gap = list(rows[0]), 2
    if width() < WIDE:
        gap = 1
        for row in rows:
            row["held-out loss"] = row["held-out loss"].partition(" ")[0]
        for dropped in DROPPED:
            columns = ([SHORT.get(head, head), *(row[head] for row in rows)] for head in heads)
            if 2 + sum(max(map(len, column)) + gap for column in columns) - gap > width():
                heads = [head for head in heads if head != dropped]
    shown = [[row[head] for head in heads] for row in rows]
    print_table(
        [SHORT.get(head, head) for head in heads], shown, numbers=range(2, len(heads)), gap=gap
    )
    for note in notes(found):
        print_result(wrapped(f"  {note}", "    "))
    places = f"all figures: {shown_path(Path(found.run_dir))}/compare.md, .json and .png"
    for paragraph in (found.verdict, places):
        print_result("")
        print_result(wrapped(paragraph, ""))
