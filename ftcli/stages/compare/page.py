"""compare.md: the whole table, the verdict and the picture, to read and to commit."""

from __future__ import annotations

from ftcli.stages.compare.columns import HEADINGS, base_words, cell_words, columns
from ftcli.stages.compare.record import FailedCell
from ftcli.stages.compare.result import Comparison


def page(found: Comparison) -> str:
    """Markdown."""
    return f"# {found.headline()}\n\n{body(found, found.picture.name)}"


def body(found: Comparison, picture: str) -> str:
    """The same without its heading, with the picture at this address."""
    lines = [found.verdict.text, "", *_table(found)]
    if failed := [cell for cell in found.cells if isinstance(cell, FailedCell)]:
        lines += ["", "Not trained:", ""]
        lines += [f"- {cell.name}: {_one_line(cell.reason)}" for cell in failed]
    lines += ["", *(f"- {note}" for note in found.notes())]
    lines += ["", f"![held-out loss against trained parameters]({picture})", ""]
    return "\n".join(lines)


def _table(found: Comparison) -> list[str]:
    names = columns(found.finished)
    marked = found.best_names if found.has_grid else set()
    rows = [base_words(found.base)] if found.base is not None else []
    rows += [cell_words(cell, found.base, best=cell.name in marked) for cell in found.finished]
    lines = [_row([HEADINGS[name].long for name in names]), _row(["---"] * len(names))]
    return lines + [_row([row[name].long for name in names]) for row in rows]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
