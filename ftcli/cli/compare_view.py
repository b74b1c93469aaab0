"""A comparison as a person reads it: one table, its notes, and the verdict."""

from __future__ import annotations

from pathlib import Path

from ftcli.console import result, shown_path, table, width, wrapped
from ftcli.results import CompareResult
from ftcli.stages.compare.wording import headline, notes, rows_of

# Columns from which on a table shows everything.
WIDE = 110
ONLY_WIDE = ("tokens/s", "file size")
SHORT = {
    "learning rate": "rate",
    "held-out loss": "loss",
    "format valid": "format",
    "finished (EOS)": "EOS",
    "general text": "general",
    "trained parameters": "trained",
    "peak memory": "peak",
    "file size": "file",
}


def show(found: CompareResult) -> None:
    """Print it."""
    result(wrapped(headline(found), ""))
    rows = rows_of(found)
    heads = list(rows[0])
    if width() < WIDE:
        heads = [head for head in heads if head not in ONLY_WIDE]
        for row in rows:
            row["held-out loss"] = row["held-out loss"].partition(" ")[0]
    shown = [[row[head] for head in heads] for row in rows]
    table([SHORT.get(head, head) for head in heads], shown, numbers=range(2, len(heads)), gap=2)
    for note in notes(found):
        result(wrapped(f"  {note}", "    "))
    result("")
    result(wrapped(found.verdict, ""))
    result("")
    result(wrapped(f"all figures: {shown_path(Path(found.folder))}/compare.md, .json and .png", ""))
