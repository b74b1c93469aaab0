"""The tables of a run, alike on page and card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ftcli.console import duration, gigabytes, megabytes
from ftcli.prepared import Prepared
from ftcli.results import EvalResult, ScoreRow, Side
from ftcli.stages.evaluate.wording import data_of, difference_of, rows_of, value_of, word_of
from ftcli.stages.report.figures import Change, ReportFigures
from ftcli.training_records import MemoryFigures, PlanRecord, TrainingResult

SIDE_NAMES: dict[Side, str] = {"base": "base", "prompted": "base with a prompt", "tuned": "tuned"}
# Two figures that are not the same (`ftcli.engine.memory`): each says what it is.
RESIDENT = "taken of the machine's memory in the steps, beyond what was held before the model"
PROCESS_PEAK = "peak of the whole process, libraries and loading included"
CARD_PEAK = "most that tensors held on the card, loading included"
SMALLEST_SHARE = 0.005
DIFFERENCE = ("verdict", "difference (95%)", "rows better / worse")


@dataclass(frozen=True)
class Table:
    """Its cells in words; the first of a row names it."""

    title: str
    heads: tuple[str, ...]
    """Empty: names and values."""
    rows: tuple[tuple[str, ...], ...]


def scores(result: EvalResult) -> Table:
    """Every shown score: your answers, each side, and tuned against the base."""
    yours = any(row.your_answers for row in result.shown_rows)
    compared = "base" in result.sides
    heads = ["score", *(["your answers"] if yours else [])]
    heads += [*(SIDE_NAMES[side] for side in result.sides), *(DIFFERENCE if compared else ())]
    rows = []
    for row in result.shown_rows:
        cells = [row.label, *([value_of(row, row.your_answers)] if yours else [])]
        cells += [value_of(row, row.side(side)) for side in result.sides]
        rows.append((*cells, *(_difference(row, "base") if compared else ())))
    return Table(f"Scores on {data_of(result)}", tuple(heads), tuple(rows))


def against_prompted(result: EvalResult) -> Table:
    """Tuned against the base with a prompt; no rows where that was not measured."""
    rows = [row for row in result.shown_rows if row.tuned_vs_prompted]
    cells = tuple((row.label, *_difference(row, "prompted")) for row in rows)
    return Table("Tuned against the base with a prompt", ("score", *DIFFERENCE), cells)


def forgetting(result: EvalResult) -> Table:
    """General ability before and after."""
    rows = tuple(
        (row.label, value_of(row, row.base), value_of(row, row.tuned), *_difference(row, "base"))
        for row in result.forgetting
    )
    return Table("General ability (forgetting)", ("score", "base", "tuned", *DIFFERENCE), rows)


def _difference(row: ScoreRow, other: Side) -> tuple[str, ...]:
    found = row.against(other)
    return word_of(row, found), difference_of(row, found), rows_of(found)


def calls(result: EvalResult) -> Table:
    """What one call takes."""
    heads = ("model", "prompt tokens", "answer tokens", "tokens per second")
    rows = []
    for side, call in result.calls.items():
        speed = f"{call.tokens_per_second:,.0f}" if call.tokens_per_second else "–"
        rows.append(
            (SIDE_NAMES[side], f"{call.prompt_tokens:,.0f}", f"{call.answer_tokens:,.0f}", speed)
        )
    return Table("One call, on the machine of the evaluation", heads, tuple(rows))


def training(figures: ReportFigures) -> Table:
    """What the training came to."""
    found = figures.record.result
    on_card = figures.record.memory is not None and figures.record.memory.device == "cuda"
    rows = tuple(_training(found, CARD_PEAK if on_card else PROCESS_PEAK)) if found else ()
    return Table("Training", (), rows)


def _training(found: TrainingResult, peak: str) -> Iterator[tuple[str, str]]:
    yield "steps", f"{found.steps:,}"
    if found.eval_loss is None:
        yield "validation loss", "not measured (no validation rows)"
    else:
        first = f"{found.first_eval_loss:.3f} → " if found.first_eval_loss is not None else ""
        best = f" (best: step {found.best_step})" if found.best_step is not None else ""
        yield "validation loss", f"{first}{found.eval_loss:.3f}{best}"
    trained, total = found.trained_parameters, found.total_parameters
    if trained and total:
        yield "trained parameters", f"{trained:,} of {total:,} ({trained / total:.2%})"
    if found.seconds is not None:
        yield "time", duration(found.seconds)
    if found.tokens_per_second:
        yield "speed", f"{found.tokens_per_second:,.0f} tokens/s"
    if found.peak_memory_bytes:
        yield peak, gigabytes(found.peak_memory_bytes)
    if found.saved_bytes:
        yield "size of the weights", megabytes(found.saved_bytes)


def splits(p: Prepared, path: Change) -> Table:
    """Sizes of each split, and of what is replayed."""
    named = [("training", p.train), ("validation", p.validation), ("test", p.test)]
    rows = [(name, each.rows, each.tokens, each.trained_tokens) for name, each in named]
    if (r := p.replay) is not None:
        rows.append((f"replayed, from {path(r.source)}", r.rows, r.tokens, r.trained_tokens))
    cells = tuple((name, *(f"{size:,}" for size in sizes)) for name, *sizes in rows)
    return Table(
        f"Splits of {path(p.train_source)}", ("split", "rows", "tokens", "trained on"), cells
    )


def rows_used(p: Prepared, lengths: Sequence[int], path: Change) -> Table:
    """Counts of the rows; `lengths`: tokens of each training row."""
    ordered, lost = sorted(lengths), f"{p.answer_tokens_lost:,}"
    usual = "–"
    if ordered:
        middle, most = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
        usual = f"half have up to {middle:,}, 95% up to {most:,}"
    if p.answer_tokens_lost:
        lost += f" ({p.answer_tokens_lost / p.answer_tokens:.1%}) in {p.rows_cut:,} rows"
    longest = f"{p.longest.tokens:,} tokens ({path(p.longest.file)}:{p.longest.line})"
    return Table(
        "Rows",
        (),
        (
            ("rows read", f"{p.rows_read:,}"),
            ("used", f"{p.rows_accepted:,}"),
            ("rejected", f"{p.rows_rejected:,}"),
            ("duplicates", f"{p.duplicates:,}"),
            ("held-out prompts that other splits hold too", f"{p.leaks:,}"),
            ("tokens of a training row", usual),
            ("longest row", longest),
            ("answer tokens lost to max_length", lost),
        ),
    )


def memory(plan: PlanRecord | None, found: MemoryFigures | None) -> Table:
    """Planned with its interval, and measured in the steps."""
    rows = []
    if plan is not None and found is not None:
        card, reserved = plan.estimate.residuals, found.estimated_reserved_bytes
        of_card = (reserved, card.low * reserved, card.high * reserved)
        tensors = (found.estimated_bytes, found.low_bytes, found.high_bytes)
        for what, (planned, low, high), measured in (
            ("held by tensors", tensors, found.allocated_bytes),
            ("held by the card's allocator", of_card, found.reserved_bytes),
            (RESIDENT, of_card, found.resident_bytes),
        ):
            if not planned or not measured:
                continue
            where = "below" if measured < low else "above" if measured > high else "within"
            change = f"{100 * (measured / planned - 1):+.0f}%".replace("-", "−")
            interval = f"{gigabytes(planned)} ({low / 1e9:.1f} to {high / 1e9:.1f})"
            verdict = f"{where} the interval ({change})"
            rows.append((what, interval, gigabytes(measured), verdict))
    heads = ("memory", "planned (interval)", "measured", "verdict")
    return Table("Planned and measured", heads, tuple(rows))


def planned_parts(plan: PlanRecord) -> Table:
    """What the plan holds at the peak of a step."""
    peak, parts = plan.estimate.peak_bytes, plan.estimate.breakdown
    rows = tuple(
        (name, megabytes(size), f"{size / peak:.0%}")
        for name, size in parts.items()
        if name != "context" and size >= SMALLEST_SHARE * peak
    )
    title = f"Planned at the peak ({plan.estimate.peak_phase}): {gigabytes(peak)}"
    return Table(title, ("part", "size", "share"), rows)


def decisions(plan: PlanRecord) -> Table:
    """What the recipe left open, decided."""
    rows = []
    for name, choice in plan.choices.items():
        value = choice.value
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        rows.append((name.replace("_", " "), shown, choice.reason))
    return Table("Plan, with its reasons", ("choice", "value", "reason"), tuple(rows))


def versions(figures: ReportFigures) -> Table:
    """Python, ftcli, the libraries, and the machine."""
    machine, rows = figures.record.hardware, list(figures.record.versions.items())
    if machine is not None:
        size = f", {gigabytes(machine.memory_bytes)}" if machine.memory_bytes else ""
        rows.append(("hardware", f"{machine.name}{size}"))
    return Table("Versions and hardware", (), tuple(rows))


def hashes(figures: ReportFigures) -> Table:
    """By which run, data, base and weights are known again."""
    record, prepared = figures.record, figures.prepared
    found = [("run", record.run_id), ("data", record.data), ("base weights", figures.base_digest)]
    found += [(f"{name} (sha256)", digest) for name, digest in (record.weights or {}).items()]
    digests = prepared.digests.items() if prepared is not None else ()
    found += [(f"{split} rows (sha256)", digest) for split, digest in digests]
    return Table("Hashes", (), tuple((name, value) for name, value in found if value))
