"""A comparison in words: its table, its notes, and compare.md."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from ftcli.commands import shown_path
from ftcli.console import duration, gigabytes, megabytes
from ftcli.metrics.scores import percent
from ftcli.results import ComparedBase, ComparedCell, CompareResult
from ftcli.stages.compare.cells import short_rate

NONE = "–"


def rows_of(found: CompareResult) -> list[dict[str, str]]:
    """The table, the base first: head of a column → the words there."""
    rows = [_row(found.base, found)]
    for cell in found.finished:
        star = " *" if cell.chosen and found.has_rates else ""
        named = {"method": cell.method, "learning rate": short_rate(cell.learning_rate) + star}
        rows.append(_row(cell, found) | named)
    if not any("format_rate" in cell.scores for cell in found.finished):
        for row in rows:
            del row["format valid"]
    heads = dict.fromkeys(rows[-1], "")
    return [heads | row for row in rows]


def _row(of: ComparedBase | ComparedCell, found: CompareResult) -> dict[str, str]:
    """Name of a column → its words; the base has nothing of a training."""
    loss, general = of.scores["loss"], of.scores.get("general_text")
    before = found.base.scores.get("general_text")
    low, high = loss.interval
    words = {
        "method": "base",
        "learning rate": "",
        "held-out loss": f"{loss.value:.3f} ({low:.2f}–{high:.2f})",
        "format valid": _share(of, "format_rate"),
        "finished (EOS)": _share(of, "stop_rate"),
        "general text": NONE if general is None else f"{math.exp(general.value):.1f}",
    }
    if isinstance(of, ComparedBase):
        return words
    if general is not None and before is not None:
        words["general text"] = _percent_more(math.expm1(general.value - before.value))
    speed = of.tokens_per_second
    return words | {
        "trained parameters": amount(of.trained_parameters),
        "peak memory": gigabytes(of.peak_memory_bytes),
        "tokens/s": NONE if speed is None else f"{speed:,.0f}",
        "file size": megabytes(of.saved_bytes),
        "time": ("≥ " if of.resumed else "") + duration(of.seconds),
    }


def _share(of: ComparedBase | ComparedCell, name: str) -> str:
    return percent(of.scores[name].value) if name in of.scores else NONE


def _percent_more(change: float) -> str:
    return f"{change:+.{1 if abs(change) < 0.0995 else 0}%}".replace("-", "−")


def amount(count: int) -> str:
    """`135 M`, `4.9 M`, `9.2 k`: three figures at most."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 99.5 else f"{value:.1f}{unit}"
    return str(count)


def headline(found: CompareResult) -> str:
    """A model's folder by its name alone."""
    local = found.model.startswith((".", "/", "~"))
    model = Path(found.model).name if local else found.model
    return f"{model}, tuned on the data of {shown_path(Path(found.recipe))}"


def notes(found: CompareResult) -> Iterator[str]:
    """What a reader of the figures has to know."""
    length = "the recipe's own length each" if found.steps is None else f"{found.steps} steps each"
    text = f" ({found.general_text})" if found.general_text else ""
    yield (
        f"{found.rows:,} held-out rows ({found.data}), {length}, seed {found.seed}; general text: "
        f"change of its perplexity{text}"
    )
    yield (
        "better and worse are corrected for all pairs of methods and base (Holm); no interval "
        "holds what another seed of the training would change"
    )
    if found.data == "validation":
        yield "these rows chose the checkpoints; hold others out with data.test for a fair loss"
    rounded = [cell.name for cell in found.finished if cell.four_bit]
    if rounded and found.base.four_bit:
        yield "the base is held in 4 bits, as these methods hold it"
    elif rounded:
        yield (
            f"general text of {', '.join(rounded)}: from the base in 16 bits, so that the rounding "
            "to 4 bits counts too"
        )
    if found.has_rates:
        yield "* the rate with the lowest validation loss of its method"
    if any(cell.resumed for cell in found.finished):
        yield "≥ stopped and resumed: the time of its last part alone"
    for cell in found.failed:
        yield f"{cell.name} failed: {' '.join(cell.reason.split())}"


def page(found: CompareResult, picture: str) -> str:
    """compare.md; `picture`: address of the picture from there."""
    return f"# {headline(found)}\n\n{body(found, picture)}"


def body(found: CompareResult, picture: str) -> str:
    """The page without its heading."""
    rows = rows_of(found)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(
        [
            found.verdict,
            "",
            *(f"| {' | '.join(cells)} |" for cells in lines),
            "",
            *(f"- {note}" for note in notes(found)),
            "",
            f"![held-out loss and trained parameters]({picture})",
            "",
        ]
    )
