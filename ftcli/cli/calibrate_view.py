"""Lines of `ftcli estimate-vram --calibrate`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from ftcli.console import megabytes, shown_path, width
from ftcli.memory.choices import MODE_NAMES
from ftcli.training.estimate.calibrate import CalibratedRun, CalibrationResult, Figure

ON_A_CPU = (
    "resident: of the machine's memory, above what the process held before the model was there; "
    "the interval is that of runs on cards"
)


def calibration_lines(found: CalibrationResult) -> list[str]:
    """Each run with its figures, and a summary at the end."""
    lines = [line for run in found.runs for line in _run_lines(run)]
    count = len(found.figures)
    figures = "1 figure" if count == 1 else f"{count} figures"
    error = f"{found.median_error:.1%}"
    lines.append(f"median error {error} of {figures}, {found.inside} inside the interval")
    if any(figure.measure == "resident" for figure in found.figures):
        lines += textwrap.wrap(ON_A_CPU, width())
    return lines


def _run_lines(run: CalibratedRun) -> Iterator[str]:
    choices = run.record.choices
    rank = f" r={choices.rank}" if choices.has_lora else ""
    checkpointing = "" if choices.checkpointing else "no "
    facts = (
        run.record.shape.name,
        f"{MODE_NAMES[choices.mode]}{rank}",
        choices.precision,
        f"{choices.micro_batch} × {choices.seq_len} tokens",
        f"{checkpointing}checkpointing",
        run.machine,
    )
    yield shown_path(run.run.path)
    yield from textwrap.wrap(
        " · ".join(facts), width(), initial_indent="  ", subsequent_indent="    "
    )
    for figure in run.figures:
        yield _figure_line(figure)


def _figure_line(figure: Figure) -> str:
    direction = "high" if figure.error > 0 else "low"
    where = "inside" if figure.inside else "outside"
    interval = f"{_size(figure.low_bytes)} to {_size(figure.high_bytes)}"
    return (
        f"  {figure.measure:<9} {_size(figure.measured_bytes):>8} · "
        f"estimate {_size(figure.estimated_bytes)}, {abs(figure.error):.1%} too {direction} · "
        f"{where} {interval}"
    )


def _size(size_bytes: int) -> str:
    """Two decimals of a GB: an error of 1% shows."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else megabytes(size_bytes)
