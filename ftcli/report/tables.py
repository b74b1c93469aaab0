"""The tables of a run, the same in report and model card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ftcli.console import counted, duration
from ftcli.data.dataset import Dataset
from ftcli.evaluation.verdicts import (
    format_difference,
    format_row_counts,
    format_value,
    rows_in_words,
    verdict_word,
)
from ftcli.report.figures import Change, ReportFigures
from ftcli.runs.results import EvalResult, ScoreRow, Side
from ftcli.runs.training_records import MemoryFigures
from ftcli.shell import GIB, gib, shown_size
from ftcli.training.plan.plan import Plan, short_key

SIDE_NAMES: dict[Side, str] = {"base": "base", "prompted": "base with a prompt", "tuned": "tuned"}
# Two different figures (`ftcli.training.preflight`).
RESIDENT = "RAM of the steps, without what the process took before the model"
PROCESS_PEAK = "peak of the whole process, libraries and loading included"
GPU_PEAK = "peak of tensors on the GPU, loading included"
ROW_COUNTS = "rows better / worse"
DIFFERENCE = ("verdict", "difference (95%)", ROW_COUNTS)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first cell of a row is its name."""

    title: str
    heads: tuple[str, ...]
    """Empty for a table of names and values."""
    rows: tuple[tuple[str, ...], ...]


def scores(result: EvalResult) -> list[Table]:
    """The measured tables: scores, against the base with a prompt, general ability."""
    shown = result.shown_rows
    prompted = [row for row in shown if row.tuned_vs_prompted]
    found = (
        _scores(f"Scores on {rows_in_words(result)}", shown, result.sides),
        _scores("Tuned against the base with a prompt", prompted, (), "prompted"),
        _scores("General ability (forgetting)", result.forgetting, ("base", "tuned")),
    )
    return [table for table in found if table.rows]


def _scores(
    title: str, rows: Sequence[ScoreRow], sides: Sequence[Side], other: Side = "base"
) -> Table:
    """Your answers and each side, if measured, and the difference of tuned to `other`."""
    yours = any(row.your_answers for row in rows) and bool(sides)
    compared = any(row.against(other) for row in rows)
    heads = ["score", *(["your answers"] if yours else []), *(SIDE_NAMES[side] for side in sides)]
    cells = []
    for row in rows:
        values = [row.your_answers] if yours else []
        values += [row.side(side) for side in sides]
        found = row.against(other)
        difference = (
            verdict_word(row, found),
            format_difference(row, found),
            format_row_counts(found),
        )
        shown = (format_value(row, value) for value in values)
        cells.append((row.label, *shown, *(difference if compared else ())))
    return Table(title, (*heads, *(DIFFERENCE if compared else ())), tuple(cells))


def training(figures: ReportFigures) -> Table:
    """The result of the training."""
    return Table("Training", (), tuple(_training(figures)))


def _training(figures: ReportFigures) -> Iterator[tuple[str, str]]:
    found, memory = figures.record.result, figures.record.memory
    if found is None:
        return
    yield "steps", f"{found.steps:,}"
    loss = "not measured (no validation rows)"
    if found.eval_loss is not None:
        first = f"{found.first_eval_loss:.3f} → " if found.first_eval_loss is not None else ""
        best = f" (best: step {found.best_step})" if found.best_step is not None else ""
        loss = f"{first}{found.eval_loss:.3f}{best}"
    yield "validation loss", loss
    trained, total = found.trainable_parameters, found.total_parameters
    if trained and total:
        yield "trainable parameters", f"{trained:,} of {total:,} ({trained / total:.2%})"
    if found.seconds is not None:
        yield "time", duration(found.seconds)
    if found.tokens_per_second:
        yield "speed", f"{found.tokens_per_second:,.0f} tokens/s"
    if found.peak_memory_bytes:
        on_gpu = memory is not None and memory.device == "cuda"
        yield GPU_PEAK if on_gpu else PROCESS_PEAK, gib(found.peak_memory_bytes)
    if found.saved_bytes:
        yield "size of the weights", shown_size(found.saved_bytes)


def splits(p: Dataset, path: Change) -> Table:
    """Sizes of the splits and of replayed rows."""
    parts = [("training", p.train), ("validation", p.validation), ("test", p.test)]
    sizes = [(name, each.rows, each.tokens, each.label_tokens) for name, each in parts]
    if (r := p.replay) is not None:
        sizes.append((f"replayed, from {path(r.source)}", r.rows, r.tokens, r.label_tokens))
    rows = tuple((name, *(f"{size:,}" for size in others)) for name, *others in sizes)
    heads = ("split", "rows", "tokens", "label tokens")
    return Table(f"Splits of {path(p.train_source)}", heads, rows)


def rows_used(p: Dataset, lengths: Sequence[int], path: Change) -> Table:
    """Counts of the rows; `lengths`: tokens of each training row."""
    ordered, lost, usual = sorted(lengths), f"{p.answer_tokens_lost:,}", "–"
    if ordered:
        middle, most = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
        usual = f"half have up to {middle:,}, 95% up to {most:,}"
    if p.answer_tokens_lost:
        lost += f" ({p.answer_tokens_lost / p.answer_tokens:.1%}) in {counted(p.rows_cut, 'row')}"
    rows = (
        ("rows read", f"{p.rows_read:,}"),
        ("used", f"{p.rows_accepted:,}"),
        ("rejected", f"{p.rows_rejected:,}"),
        ("duplicates", f"{p.duplicates:,}"),
        ("held-out prompts that are also in another split", f"{p.overlap:,}"),
        ("tokens per training row", usual),
        ("longest row", f"{p.longest.tokens:,} tokens ({path(p.longest.file)}:{p.longest.line})"),
        ("answer tokens truncated (max_length)", lost),
    )
    return Table("Rows", (), rows)


def memory(plan: Plan, found: MemoryFigures) -> Table:
    """Planned, with its interval, and measured in the steps."""
    residuals, size = plan.estimate.residuals, found.estimated_reserved_bytes
    reserved = (size, residuals.low * size, residuals.high * size)
    tensors = (found.estimated_bytes, found.low_bytes, found.high_bytes)
    rows = []
    for what, (planned, low, high), measured in (
        ("allocated by tensors", tensors, found.allocated_bytes),
        ("reserved by the allocator", reserved, found.reserved_bytes),
        (RESIDENT, reserved, found.resident_bytes),
    ):
        if planned and measured:
            where = "below" if measured < low else "above" if measured > high else "within"
            change = f"{100 * (measured / planned - 1):+.0f}%".replace("-", "−")
            interval = f"{gib(planned)} ({low / GIB:.1f} to {high / GIB:.1f})"
            rows.append((what, interval, gib(measured), f"{where} the interval ({change})"))
    heads = ("memory", "planned (interval)", "measured", "verdict")
    return Table("Planned and measured", heads, tuple(rows))


def decisions(plan: Plan) -> Table:
    """The decided `auto` values of the recipe."""
    rows = []
    for key, value, reason in plan.decisions():
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        rows.append((short_key(key), shown, reason))
    return Table("Plan, with its reasons", ("choice", "value", "reason"), tuple(rows))


def versions(figures: ReportFigures) -> Table:
    """Python, ftcli, the libraries, and the machine."""
    machine, rows = figures.record.hardware, list(figures.record.versions.items())
    if machine is not None:
        size = f", {gib(machine.memory_bytes)}" if machine.memory_bytes else ""
        rows.append(("hardware", f"{machine.name}{size}"))
    return Table("Versions and hardware", (), tuple(rows))


def hashes(figures: ReportFigures) -> Table:
    """Hashes that identify run, data, base and weights."""
    record, prepared = figures.record, figures.prepared
    found = [("run", record.run_id), ("data", record.data), ("base weights", figures.base_digest)]
    found += [(f"{name} (sha256)", digest) for name, digest in (record.weights or {}).items()]
    digests = prepared.digests if prepared is not None else {}
    found += [(f"{split} rows (sha256)", digest) for split, digest in digests.items()]
    return Table("Hashes", (), tuple((name, value) for name, value in found if value))
