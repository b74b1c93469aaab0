"""Lines of `ftcli compare`: one table, as wide as the terminal lets it be, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from ftcli.console import shown_path, width
from ftcli.stages.compare.columns import HEADINGS, Words, base_words, cell_words, columns
from ftcli.stages.compare.record import FailedCell
from ftcli.stages.compare.result import Comparison

MARGIN, GAP = "  ", "  "
TO_THE_LEFT = {"method", "rate"}
# What gives way where the terminal is narrow, in this order: first words, then whole columns.
SHORTENED = ("time", "loss", "general", "trained", "rouge", "format", "method")
LEFT_OUT = ("speed", "size", "stop", "time", "memory")

Row = Mapping[str, Words]


def comparison_lines(found: Comparison) -> Iterator[str]:
    """The whole answer, none of its lines longer than the terminal is wide."""
    yield from _wrapped(found.headline())
    yield from _table(found)
    for note in found.notes():
        yield from _wrapped(note, MARGIN)
    yield ""
    yield from _wrapped(found.verdict.text)
    yield ""
    yield from _wrapped(f"all figures: {shown_path(found.folder)}/compare.md, .json and .png")


def _table(found: Comparison) -> Iterator[str]:
    marked = found.best_names if found.has_grid else set()
    words = {
        cell.name: cell_words(cell, found.base, best=cell.name in marked) for cell in found.finished
    }
    base = [base_words(found.base)] if found.base is not None else []
    names, short = layout([*base, *words.values()], columns(found.finished))
    shown = (HEADINGS, *base, *words.values())
    widths = {name: max(len(_text(row[name], name in short)) for row in shown) for name in names}
    for row in (HEADINGS, *base):
        yield _line(row, names, short, widths)
    for cell in found.cells:
        if isinstance(cell, FailedCell):
            yield from _failed(cell)
        else:
            yield _line(words[cell.name], names, short, widths)


def layout(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[str], set[str]]:
    """The columns that fit, and which of them are in short words."""
    kept, short = list(names), set[str]()
    changes = [(name, True) for name in SHORTENED] + [(name, False) for name in LEFT_OUT]
    for name, shorten in changes:
        if _columns_wide(rows, kept, short) <= width():
            break
        if shorten:
            short.add(name)
        elif name in kept:
            kept.remove(name)
    return kept, short


def _columns_wide(rows: Sequence[Row], names: Sequence[str], short: set[str]) -> int:
    cells = [max(len(_text(row[n], n in short)) for row in (HEADINGS, *rows)) for n in names]
    return len(MARGIN) + sum(cells) + len(GAP) * (len(names) - 1)


def _line(row: Row, names: Sequence[str], short: set[str], widths: dict[str, int]) -> str:
    cells = [
        text.ljust(widths[name]) if name in TO_THE_LEFT else text.rjust(widths[name])
        for name in names
        for text in [_text(row[name], name in short)]
    ]
    return (MARGIN + GAP.join(cells)).rstrip()


def _text(words: Words, short: bool) -> str:
    return words.short if short else words.long


def _failed(cell: FailedCell) -> Iterator[str]:
    reason = " ".join(cell.reason.split())
    yield from _wrapped(f"{cell.name}: not trained: {reason}", MARGIN)


def _wrapped(text: str, indent: str = "") -> list[str]:
    further = indent + "  " if indent else ""
    return textwrap.wrap(
        text,
        width(),
        initial_indent=indent,
        subsequent_indent=further,
        break_on_hyphens=False,
        break_long_words=False,
    )
