"""`ftcli eval RUN`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftcli.cli import options
from ftcli.console import Terminal, result, result_json, say, table, width

if TYPE_CHECKING:
    from ftcli.stages.evaluate import EvalResult


# Score → what a person calls it, and whether it is a share.
NAMES = {
    "loss": ("loss", False),
    "perplexity": ("perplexity", False),
    "format_rate": ("in the format", True),
    "stop_rate": ("stops by itself", True),
    "rouge_l": ("ROUGE-L", False),
    "chrf": ("chrF", False),
    "exact_match": ("exact match", True),
}
# Of each answer side by side; the whole texts are in the run's eval/ folder.
LINES_SHOWN = 12


def evaluate(
    run: options.Run,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows to use instead of the held-out ones.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use the first N rows.")
    ] = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Measure the base too.")] = True,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare base and tuned on held-out rows.

    Loss, stop rate, form and text overlap, each with a 95% interval.
    """
    from ftcli.stages.evaluate import evaluate_run

    found = evaluate_run(
        run, overrides or (), data=data, limit=limit, with_base=base, reporter=Terminal()
    )
    if json:
        result_json(found.as_json())
    else:
        _show(found)


def _show(found: EvalResult) -> None:
    report = found.report
    if found.stored:
        say("evaluated before; the same scores again")
    if report["rows_chose_checkpoint"]:
        say(
            "note: these rows chose the checkpoint; hold others out with data.test for a fair score"
        )
    sides = [side for side in ("base", "tuned") if side in report]
    names = [name for name in NAMES if name in report["tuned"]]
    rows = [[NAMES[name][0], *(_score(report[side], name) for side in sides)] for name in names]
    table([f"{report['rows']} held-out rows", *sides], rows)
    for sample in report["samples"]:
        result("")
        for line in side_by_side(sample, sides, width()):
            result(line)


def _score(scores: dict[str, Any], name: str) -> str:
    low, high = scores[f"{name}_interval"]
    if NAMES[name][1]:
        return f"{scores[name]:.0%} ({low:.0%}–{high:.0%})".replace("%–", "–")
    return f"{scores[name]:.2f} ({low:.2f}–{high:.2f})"


def side_by_side(sample: dict[str, Any], sides: Sequence[str], columns: int) -> list[str]:
    """A prompt, and below it the answers in columns."""
    lines = [f"prompt  {sample['file']}:{sample['line']}"]
    lines += [f"  {line}" for line in _wrapped(sample["prompt"], columns - 2)]
    wide = (columns - 2 * len(sides)) // len(sides)
    cells = [_cell(sample[side], wide - 1) for side in sides]
    lines.append("  ".join(side.ljust(wide) for side in sides).rstrip())
    for row in range(max(len(cell) for cell in cells)):
        parts = [cell[row] if row < len(cell) else "" for cell in cells]
        lines.append("  ".join(part.ljust(wide) for part in parts).rstrip())
    return lines


def _cell(answer: dict[str, Any], columns: int) -> list[str]:
    """An answer's first lines, and whether it was cut."""
    lines = _wrapped(answer["text"].strip(), columns)
    if len(lines) > LINES_SHOWN:
        lines = [*lines[: LINES_SHOWN - 1], "…"]
    return lines if answer["stopped"] else [*lines, f"(cut after {answer['tokens']} tokens)"]


def _wrapped(text: str, columns: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, columns) or [""]]
