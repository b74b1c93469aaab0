"""Where a run comes from: its data, its plan and its memory, its hashes, the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftcli.console import duration, gigabytes, megabytes
from ftcli.prepared import Prepared, Replayed, SplitCounts
from ftcli.stages.report.elsewhere import Told
from ftcli.stages.report.plain import Plain, items, mapping, number, pair, text
from ftcli.stages.report.scored import signed

NO_INTERVAL = (1.0, 1.0)
# Two figures that are not the same (`ftcli.engine.memory`): each says what it is.
RESIDENT = "taken of the machine's memory in the steps, beyond what was held before the model"
PROCESS_PEAK = "peak of the whole process, libraries and loading included"
CARD_PEAK = "most that tensors held on the card, loading included"


@dataclass(frozen=True)
class Pair:
    """A figure's name, and the figure."""

    name: str
    value: str


@dataclass(frozen=True)
class Decision:
    """One choice of the plan."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class SplitRow:
    """Sizes of one split."""

    name: str
    rows: int
    tokens: int
    trained_tokens: int


@dataclass(frozen=True)
class DataFigures:
    """What the rows became."""

    source: str
    splits: tuple[SplitRow, ...]
    replayed: SplitRow | None
    """General rows that are trained on beside the task's; none: no such."""
    replay_source: str
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...]
    """The first rows that were not used, each with its reason."""
    plain_text: bool
    """Rows are plain texts without turns: nothing can be asked."""

    @property
    def rows(self) -> tuple[SplitRow, ...]:
        """The table's: every split, and what is replayed."""
        if self.replayed is None:
            return self.splits
        return (*self.splits, replace(self.replayed, name=f"replayed, from {self.replay_source}"))


@dataclass(frozen=True)
class MemoryItem:
    """One part of what was planned; share of the peak."""

    name: str
    size: str
    share: float


@dataclass(frozen=True)
class MemoryPair:
    """A planned figure beside the measured one; shares of the greatest shown figure."""

    what: str
    planned: str
    interval: str
    measured: str
    verdict: str
    shares: Mapping[str, float]
    """`planned`, `low`, `high`, `measured`."""


@dataclass(frozen=True)
class MemoryFigures:
    """Memory planned against measured."""

    items: tuple[MemoryItem, ...]
    pairs: tuple[MemoryPair, ...]
    peak_phase: str
    summary: str


SHOWN_PROBLEMS = 20


def data_figures(prepared: Prepared, lengths: Sequence[int], told: Told) -> DataFigures:
    """Counts of a preparation; `lengths`: tokens of each training row, none where unknown."""
    p = prepared
    splits = [("training", p.train), ("validation", p.validation), ("test", p.test)]
    replay, longest = p.replay, told(p.longest.file)
    counts = [
        Pair("rows read", f"{p.rows_read:,}"),
        Pair("used", f"{p.rows_accepted:,}"),
        Pair("rejected", f"{p.rows_rejected:,}"),
        Pair("duplicates", f"{p.duplicates:,}"),
        Pair("held-out prompts that stand elsewhere too", f"{p.leaks:,}"),
        Pair("tokens a training row", _lengths(lengths, p)),
        Pair("longest row", f"{p.longest.tokens:,} tokens ({longest}:{p.longest.line})"),
        Pair("answer tokens lost to max_length", _lost(p)),
    ]
    faults = [replace(each, file=told(each.file)) for each in p.problems[:SHOWN_PROBLEMS]]
    return DataFigures(
        source=told(p.train_source),
        splits=tuple(_size(name, counts) for name, counts in splits),
        replayed=_size("replayed", replay) if replay is not None else None,
        replay_source=told(replay.source) if replay is not None else "",
        pairs=tuple(counts),
        problems=tuple(str(fault) for fault in faults),
        plain_text=p.plain_text,
    )


def _size(name: str, counts: SplitCounts | Replayed) -> SplitRow:
    return SplitRow(name, counts.rows, counts.tokens, counts.trained_tokens)


def _lengths(lengths: Sequence[int], prepared: Prepared) -> str:
    if not lengths:
        train = prepared.train
        return f"mean {train.tokens / train.rows:.0f}" if train.rows else "none"
    ordered = sorted(lengths)
    middle, most = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
    return f"half have up to {middle:,}, 95% up to {most:,}"


def _lost(prepared: Prepared) -> str:
    lost, whole = prepared.answer_tokens_lost, prepared.answer_tokens
    if not lost or not whole:
        return f"{lost:,}"
    return f"{lost:,} ({lost / whole:.1%}) in {prepared.rows_cut:,} rows"


def decisions_of(plan: Plain) -> tuple[Decision, ...]:
    """Choices of plan.json with their reasons."""
    return tuple(
        Decision(name.replace("_", " "), _value(choice["value"]), text(choice.get("reason")))
        for name, choice in plan.items()
        if isinstance(choice, dict) and "value" in choice
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    found = number(value)
    return f"{found:g}" if found is not None else str(value)


def memory_figures(plan: Plain, record: Plain) -> MemoryFigures | None:
    """From plan.json and `memory` of run.json; none where neither has a figure."""
    estimate = mapping(plan.get("estimate"))
    peak = number(estimate.get("peak_bytes"))
    if not peak:
        return None
    parts = [(name, number(size)) for name, size in mapping(estimate.get("breakdown")).items()]
    shown = [
        MemoryItem(name, megabytes(size), size / peak)
        for name, size in parts
        if size and name != "context" and size / peak >= 0.005
    ]
    pairs = tuple(_pairs(estimate, record))
    words = [f"Planned {gigabytes(peak)} held by tensors at the peak"]
    words += [f"{pair.what}: planned {pair.planned}, measured {pair.measured}" for pair in pairs]
    if not pairs:
        words.append("not measured")
    phase = text(estimate.get("peak_phase"))
    return MemoryFigures(tuple(shown), pairs, phase, "; ".join(words))


def _pairs(estimate: Plain, record: Plain) -> list[MemoryPair]:
    residuals = mapping(estimate.get("residuals"))
    card = pair([residuals.get("low"), residuals.get("high")]) or NO_INTERVAL
    tensors = number(record.get("estimated_bytes")), number(record.get("low_bytes"))
    reserved = number(record.get("estimated_reserved_bytes"))
    wanted = [
        ("held by tensors", tensors[0], tensors[1], record.get("high_bytes"), "allocated_bytes"),
        ("held by the card's allocator", reserved, None, None, "reserved_bytes"),
        (RESIDENT, reserved, None, None, "resident_bytes"),
    ]
    found = []
    for what, planned, low, high, measured_name in wanted:
        measured = number(record.get(measured_name))
        if planned and measured:
            ends = (low, number(high)) if low else (card[0] * planned, card[1] * planned)
            found.append(_memory_pair(what, planned, (ends[0] or 0, ends[1] or 0), measured))
    return found


def _memory_pair(
    what: str, planned: float, ends: tuple[float, float], measured: float
) -> MemoryPair:
    low, high = ends
    most = max(high, measured, planned)
    if low <= measured <= high:
        verdict = "within the interval"
    else:
        verdict = "below the interval" if measured < low else "above the interval"
    shares = {"planned": planned, "low": low, "high": high, "measured": measured}
    return MemoryPair(
        what=what,
        planned=gigabytes(planned),
        interval=f"{low / 1e9:.1f}–{high / 1e9:.1f} GB",
        measured=gigabytes(measured),
        verdict=f"{verdict} ({signed(100 * (measured / planned - 1), 0)}%)",
        shares={name: size / most for name, size in shares.items()},
    )


def training_pairs(manifest: Plain) -> tuple[Pair, ...]:
    """What the training came to."""
    result = mapping(manifest.get("result"))
    trained, total = (
        number(result.get("trained_parameters")),
        number(result.get("total_parameters")),
    )
    seconds, peak = number(result.get("seconds")), number(result.get("peak_memory_bytes"))
    speed, saved = number(result.get("tokens_per_second")), number(result.get("saved_bytes"))
    steps = number(result.get("steps"))
    on_cpu = text(mapping(manifest.get("memory")).get("device")) != "cuda"
    found = [
        Pair("steps", f"{steps:,.0f}") if steps is not None else None,
        Pair("validation loss", losses(result)),
        Pair("trained parameters", f"{trained:,.0f} of {total:,.0f} ({trained / total:.2%})")
        if trained and total
        else None,
        Pair("time", duration(seconds)) if seconds is not None else None,
        Pair("speed", f"{speed:,.0f} tokens/s") if speed else None,
        Pair(PROCESS_PEAK if on_cpu else CARD_PEAK, gigabytes(peak)) if peak else None,
        Pair("size of the weights", megabytes(saved)) if saved else None,
    ]
    return tuple(each for each in found if each is not None)


def losses(result: Plain) -> str:
    """`3.356 → 1.767 (best: step 56)`."""
    last, first = number(result.get("eval_loss")), number(result.get("first_eval_loss"))
    if last is None:
        return "not measured (no validation rows)"
    before = f"{first:.3f} → " if first is not None else ""
    best = number(result.get("best_step"))
    return f"{before}{last:.3f}" + (f" (best: step {best:.0f})" if best is not None else "")


def hashes_of(manifest: Plain, contract: Plain, prepared: Prepared | None) -> tuple[Pair, ...]:
    """By which data, base, template and weights are known again."""
    found = [
        ("run", text(manifest.get("run_id"))),
        ("data", text(manifest.get("data"))),
        ("base weights", text(contract.get("base"))),
        ("chat template (sha256)", text(contract.get("template"))),
    ]
    weights = mapping(manifest.get("weights"))
    found += [(f"{name} (sha256)", text(digest)) for name, digest in weights.items()]
    if prepared is not None:
        found += [(f"{split} rows (sha256)", d) for split, d in prepared.digests.items()]
    return tuple(Pair(name, value) for name, value in found if value)


def versions_of(manifest: Plain) -> tuple[Pair, ...]:
    """Python, ftcli, and the libraries below."""
    versions = mapping(manifest.get("versions")).items()
    return tuple(Pair(name, text(version)) for name, version in versions)


def machine_of(manifest: Plain) -> str:
    """`AMD EPYC, 25.3 GB`."""
    hardware = mapping(manifest.get("hardware"))
    size = number(hardware.get("memory_bytes"))
    parts = [text(hardware.get("name")), gigabytes(size) if size else ""]
    return ", ".join(part for part in parts if part) or "unknown"


def advice_lines(advice: Plain) -> tuple[str, ...]:
    """What data/advice.json says, sentence by sentence."""
    return tuple(line for line in items(advice.get("sentences")) if isinstance(line, str))
