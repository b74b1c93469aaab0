"""The columns of a comparison's table, each in words for a wide place and for a narrow one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ftcli.console import duration, gigabytes, megabytes
from ftcli.stages.compare.cells import short_rate
from ftcli.stages.compare.record import BaseRecord, CellRecord

NONE = "–"


@dataclass(frozen=True)
class Words:
    """One figure, whole and short."""

    long: str
    short: str

    @classmethod
    def same(cls, text: str) -> Words:
        return cls(text, text)


HEADINGS: Mapping[str, Words] = {
    "method": Words.same("method"),
    "rate": Words.same("rate"),
    "loss": Words("held-out loss", "loss"),
    "format": Words("in format", "form"),
    "stop": Words.same("stops"),
    "rouge": Words("ROUGE-L", "ROUGE"),
    "general": Words("general text", "forgot"),
    "trained": Words("trained", "trained"),
    "memory": Words.same("peak"),
    "speed": Words.same("tok/s"),
    "size": Words.same("file"),
    "time": Words.same("time"),
}


def columns(cells: list[CellRecord]) -> list[str]:
    """The columns that these cells have something to say in."""
    scores = {name for cell in cells for name in cell.tuned.scores}
    needed = {"format": "format_rate", "stop": "stop_rate", "rouge": "rouge_l"}
    return [name for name in HEADINGS if name not in needed or needed[name] in scores]


def base_words(base: BaseRecord) -> dict[str, Words]:
    """The base's row; what only a training has is left blank."""
    four_bit = Words("base (4-bit)", "base") if base.four_bit else Words.same("base")
    scores = _scores(base.side.scores)
    general = Words(f"{base.side.passages.perplexity:.1f}", NONE)
    return {name: Words.same("") for name in HEADINGS} | {
        "method": four_bit,
        **scores,
        "general": general,
    }


def cell_words(cell: CellRecord, base: BaseRecord | None, *, best: bool) -> dict[str, Words]:
    """A cell's row; `best` puts a mark beside the rate that its validation has chosen."""
    report = cell.training
    return {
        "method": Words.same(cell.method),
        "rate": Words.same(short_rate(cell.learning_rate) + (" *" if best else "")),
        **_scores(cell.tuned.scores),
        "general": _general(cell, base),
        "trained": _trained(report["trained_parameters"], report["total_parameters"]),
        "memory": Words.same(
            ("≤ " if cell.one_process else "") + gigabytes(report["peak_memory_bytes"])
        ),
        "speed": Words.same(f"{report['tokens_per_second']:,.0f}"),
        "size": Words.same(megabytes(report["saved_bytes"])),
        "time": _time(report["seconds"], "≥ " if cell.resumed else ""),
    }


def _scores(scores: Mapping[str, object]) -> dict[str, Words]:
    return {
        "loss": _loss(scores),
        "format": _share(scores, "format_rate"),
        "stop": _share(scores, "stop_rate"),
        "rouge": _share(scores, "rouge_l", lambda value: f"{value:.2f}"),
    }


def _loss(scores: Mapping[str, object]) -> Words:
    loss, interval = scores["loss"], scores["loss_interval"]
    assert isinstance(loss, float) and isinstance(interval, list)
    low, high = interval
    return Words(f"{loss:.3f} ({low:.2f}–{high:.2f})", f"{loss:.3f}")


def _share(
    scores: Mapping[str, object], name: str, shown: Callable[[float], str] = "{:.0%}".format
) -> Words:
    value = scores.get(name)
    return Words.same(shown(value) if isinstance(value, float | int) else NONE)


def _general(cell: CellRecord, base: BaseRecord | None) -> Words:
    found = cell.forgetting(base)
    if found is None:
        return Words(f"{cell.tuned.passages.perplexity:.1f}", NONE)
    change = f"{found.change:+.1%}" if abs(found.change) < 0.0995 else f"{found.change:+.0%}"
    return Words(f"{found.before:.1f} → {found.after:.1f} {change}", change)


def _trained(trained: int, total: int) -> Words:
    share = trained / total
    shown = f"{share:.2%}" if share < 0.0995 else f"{share:.0%}"
    return Words(f"{amount(trained)} ({shown})", amount(trained))


def amount(count: int) -> str:
    """`135 M`, `4.9 M`, `9.2 k`: three figures at most."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 99.5 else f"{value:.1f}{unit}"
    return str(count)


def _time(seconds: float, sign: str) -> Words:
    short = f"{seconds:.0f} s" if seconds < 1000 else f"{seconds / 60:.0f} min"
    return Words(sign + duration(seconds), sign + short)
