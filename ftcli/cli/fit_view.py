"""Lines of `ftcli estimate-vram` for --fit, --max and --sweep."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from ftcli.console import gigabytes, shown_path, width
from ftcli.memory import Estimate
from ftcli.memory.fit.fitting import Alternatives, FitResult
from ftcli.memory.fit.limits import MOST, Limit, Sweep, SweepRow
from ftcli.memory.hardware import Hardware
from ftcli.training.estimate.result import FitAnswer


def fit_lines(found: FitAnswer, hardware: Hardware, written: Path | None) -> Iterator[str]:
    """The changes with their costs, and the training they lead to."""
    yield ""
    if found.found is None:
        yield from _wrapped(_nothing(found.instead, hardware), "  ")
        return
    changes = found.found.changes
    if changes:
        yield from _wrapped(f"to fit {hardware.name}, the cheapest changes:", "  ")
    for change in changes:
        upper = f"up to {gigabytes(change.high_bytes)}"
        yield from _wrapped(
            f"  {change.change}: {gigabytes(change.device_bytes)}, {upper} ({change.key})", "    "
        )
        yield from _wrapped(f"    costs {change.cost}", "    ")
    yield from _wrapped(_outcome(found.found, hardware), "  ")
    if written is not None:
        yield from _wrapped(f"written: {shown_path(written)}", "  ")


def _outcome(found: FitResult, hardware: Hardware) -> str:
    choices = found.choices
    start = "then" if found.changes else f"fits {hardware.name} as it is"
    checkpointing = "with" if choices.gradient_checkpointing else "without"
    return (
        f"{start}: micro-batch {choices.micro_batch} × {choices.gradient_accumulation}, "
        f"{checkpointing} gradient checkpointing, {_figure(found.estimate)} of "
        f"{gigabytes(hardware.usable_bytes)}"
    )


def _nothing(instead: Alternatives | None, hardware: Hardware) -> str:
    text = f"no change that `ftcli train` can carry out makes it fit {hardware.name}"
    ways = []
    if instead is not None and instead.card is not None:
        ways.append(f"{instead.card} takes it (--fit {instead.card.replace('RTX ', '')!r})")
    if instead is not None and instead.model is not None:
        ways.append(f"--model {instead.model} fits with nothing else changed")
    if not ways:
        return f"{text}, and no other card known here nor a smaller known model does either"
    return f"{text}; one training runs on one card: {', or '.join(ways)}"


def limit_lines(limit: Limit, hardware: Hardware) -> Iterator[str]:
    """The largest that fits, by the upper end of the interval."""
    if limit.value is None or limit.estimate is None:
        yield from _wrapped(f"not even {limit.size} 1 surely fits {hardware.name}", "  ")
        return
    more = " or more" if limit.value == MOST else ""
    context = "; whether the model was made for so many is not asked" * (limit.size == "seq-len")
    yield from _wrapped(
        f"largest {limit.size} that surely fits {hardware.name}: {limit.value}{more} "
        f"({_figure(limit.estimate)} of {gigabytes(hardware.usable_bytes)}){context}",
        "  ",
    )


def sweep_lines(sweep: Sweep) -> Iterator[str]:
    """A table of the values, with a bar of what nvidia-smi shows."""
    yield ""
    heads = [sweep.size, "allocated", "on the card", "between", "fits"]
    cells = [_cells(row) for row in sweep.rows]
    columns = list(zip(heads[: len(cells[0])], *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    starts = [
        "  " + "  ".join(cell.rjust(each) for cell, each in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
    yield starts[0]
    sizes = [row.estimate.device_bytes for row in sweep.rows]
    bar = max(1, width() - len(starts[0]) - 2)
    for start, size in zip(starts[1:], sizes, strict=True):
        yield f"{start}  {'█' * max(1, round(bar * size / max(sizes)))}"


def _cells(row: SweepRow) -> list[str]:
    estimate = row.estimate
    between = f"{estimate.low_bytes / 1e9:.1f}–{estimate.high_bytes / 1e9:.1f} GB"
    figures = [gigabytes(estimate.peak_bytes), gigabytes(estimate.device_bytes), between]
    fits = [] if row.fits is None else ["yes" if row.fits else "no"]
    return [str(row.value), *figures, *fits]


def _figure(estimate: Estimate) -> str:
    return f"{gigabytes(estimate.device_bytes)}, up to {gigabytes(estimate.high_bytes)}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, width(), subsequent_indent=indent, break_on_hyphens=False)
