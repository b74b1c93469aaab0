"""Score the memory estimate against a table of measured runs.

    python -m scripts.vram_error docs/data/measured_runs.csv [--json] [--write-residuals]
    python -m scripts.vram_error --write     # the tables of the error in docs/vram.md

The compared figure is the one that `measure` names. Rows that the estimate cannot express are
listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.memory import estimate
from ftcli.memory.interval import (
    POOLED,
    RESIDUALS,
    Figure,
    Residuals,
    as_plain,
    group_of,
    residuals,
    residuals_of,
)
from ftcli.shell import GIB
from scripts.measured_runs import DATA, TABLE, MeasuredRun, Row, expressed, read_rows

PAGE, CAUSES = DATA.parent / "vram.md", DATA / "causes.json"
END = "<!-- end -->"
WORST = 10  # rows furthest off, each with its cause


@dataclass(frozen=True)
class Scored:
    """A run and its estimate, in bytes."""

    run: MeasuredRun
    estimated_bytes: int

    @property
    def error(self) -> float:
        """Estimated / measured − 1."""
        return self.estimated_bytes / self.run.measured_bytes - 1

    @property
    def ratio(self) -> float:
        return self.run.measured_bytes / self.estimated_bytes

    @property
    def figure(self) -> Figure:
        return "allocated" if self.run.measure == "allocated" else "card"

    @property
    def like_ours(self) -> bool:
        return self.run.choices.stack.like_ours

    @property
    def interval_bytes(self) -> tuple[float, float]:
        kind = residuals_of(self.run.choices, self.figure)
        return kind.low * self.estimated_bytes, kind.high * self.estimated_bytes

    @property
    def covered(self) -> bool:
        low, high = self.interval_bytes
        return low <= self.run.measured_bytes <= high


def score(run: MeasuredRun) -> Scored:
    found = estimate(run.architecture, run.choices, run.capability)
    figures = {
        "allocated": found.peak_bytes,
        "reserved": found.reserved_bytes,
        "nvidia-smi": found.device_bytes,
    }
    return Scored(run, figures[run.measure])


def score_table(table: Path) -> tuple[list[Scored], list[dict[str, str]]]:
    """The scored runs, and the rows left out with the reason."""
    scored, left_out = [], []
    for row in expressed(read_rows(table)):
        if isinstance(row, MeasuredRun):
            scored.append(score(row))
        else:
            left_out.append({"row_id": row[0]["row_id"], "reason": row[1]})
    return scored, left_out


def summary(scored: Sequence[Scored]) -> dict[str, Any]:
    """Rows, and of the absolute relative errors the median and the 90th percentile; the median
    signed error; the share inside the interval, and the interval's median width."""
    if not scored:
        return {"rows": 0} | dict.fromkeys(("median", "p90", "bias", "coverage", "median_width"))
    errors = sorted(abs(each.error) for each in scored)
    widths = [
        (high - low) / each.estimated_bytes
        for each in scored
        for low, high in [each.interval_bytes]
    ]
    return {
        "rows": len(scored),
        "median": statistics.median(errors),
        "p90": errors[round(0.9 * (len(errors) - 1))],
        "bias": statistics.median(each.error for each in scored),
        "coverage": sum(each.covered for each in scored) / len(scored),
        "median_width": statistics.median(widths),
    }


def grouped(scored: Iterable[Scored], key: Callable[[Scored], str]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Scored]] = {}
    for each in scored:
        groups.setdefault(key(each), []).append(each)
    return {name: summary(groups[name]) for name in sorted(groups)}


def report(table: Path) -> dict[str, Any]:
    scored, left_out = score_table(table)
    return {
        **summary(scored),
        "same_stack": summary([each for each in scored if each.like_ours]),
        "per_method": grouped(scored, lambda each: each.run.row["method"]),
        "per_source": grouped(scored, lambda each: each.run.row["source"].split(" ")[0]),
        "per_measure": grouped(scored, lambda each: each.run.measure),
        "per_row": [_row_report(each) for each in scored],
        "left_out": left_out,
    }


def _row_report(each: Scored) -> dict[str, Any]:
    low, high = each.interval_bytes
    return {
        "row_id": each.run.row["row_id"],
        "estimate_gib": each.estimated_bytes / GIB,
        "low_gib": low / GIB,
        "high_gib": high / GIB,
        "measured_gib": each.run.measured_bytes / GIB,
    }


def residuals_of_table(table: Path) -> list[Residuals]:
    """Contents of ftcli/memory/residuals.json: the residuals of every kind of run."""
    scored, _ = score_table(table)
    kinds: dict[tuple[Figure, str, bool], list[float]] = {}
    for each in scored:
        group = group_of(each.run.choices)
        groups = [group, POOLED] if each.run.choices.stack.trainable_parameters is None else [group]
        for name in groups:
            if name == POOLED and group not in ("full fine-tuning", "LoRA", "QLoRA"):
                continue
            kinds.setdefault((each.figure, name, each.like_ours), []).append(each.ratio)
    return [
        residuals(figure, group, like_ours, ratios)
        for (figure, group, like_ours), ratios in sorted(kinds.items())
    ]


def residuals_text(table: Path) -> str:
    kinds = [as_plain(kind) for kind in residuals_of_table(table)]
    source = "Written by scripts/vram_error.py --write-residuals from docs/data/measured_runs.csv."
    return json.dumps({"source": source, "kinds": kinds}, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, nargs="?", default=TABLE)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--write-residuals", action="store_true", help=f"rewrite {RESIDUALS.name}")
    parser.add_argument("--write", action="store_true", help=f"the tables of {PAGE.name}")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
        return
    if chosen.write_residuals:
        RESIDUALS.write_text(residuals_text(chosen.table), encoding="utf-8")
        return
    found = report(chosen.table)
    print(json.dumps(found) if chosen.json else _text(found))


def _text(found: dict[str, Any]) -> str:
    lines = [f"{'':32}{'rows':>5}{'median':>8}{'p90':>8}{'bias':>8}{'cover':>8}{'width':>8}"]
    named = {"all": found, "same stack": found["same_stack"]}
    for group in ("per_method", "per_measure", "per_source"):
        named |= found[group]
    for name, each in named.items():
        figures = [each[key] for key in ("median", "p90", "bias", "coverage", "median_width")]
        shares = "".join(f"{'-':>8}" if share is None else f"{share:8.1%}" for share in figures)
        lines.append(f"{name[:32]:32}{each['rows']:5}{shares}")
    lines += [f"left out: row {each['row_id']}: {each['reason']}" for each in found["left_out"]]
    return "\n".join(lines)


# docs/vram.md


def page(text: str) -> str:
    """The page with its two tables written again."""
    scored, left_out = score_table(TABLE)
    assert not left_out, left_out
    for name, table in (("errors", error_table(scored)), ("worst", worst_table(scored))):
        before, _, rest = text.partition(f"<!-- begin: {name} -->")
        text = f"{before}<!-- begin: {name} -->\n\n{table}\n\n{END}{rest.partition(END)[2]}"
    return text


def _markdown(head: Sequence[str], marks: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


def error_table(scored: Sequence[Scored]) -> str:
    like = [each for each in scored if each.like_ours]
    rows = [
        _error_row("**all**", summary(scored)),
        _error_row("**similar versions**", summary(like)),
    ]
    keys: dict[str, Callable[[Scored], str]] = {
        "method": lambda each: each.run.row["method"],
        "figure": lambda each: each.run.measure,
        "source": source_of,
    }
    for name, key in keys.items():
        for group, found in grouped(scored, key).items():
            rows.append(_error_row(f"{name}: {group}", found))
        if name == "method":
            rows += [
                _error_row(f"similar versions, {name}: {group}", found)
                for group, found in grouped(like, key).items()
            ]
    head = ["", "rows", "median", "9 in 10", "bias", "inside", "width"]
    return _markdown(head, ["---", *["---:"] * 6], rows)


def _share(number: float) -> str:
    return f"{number:.1%}".replace("-0.0%", "0.0%")


def source_of(each: Scored) -> str:
    """Owner and name of the repository, or the package."""
    first, _, rest = each.run.row["source"].partition(" ")
    return rest.split(" ")[0] if first == "PyPI" else first


def _error_row(name: str, found: dict[str, Any]) -> list[str]:
    keys = ("median", "p90", "bias", "coverage", "median_width")
    return [name, str(found["rows"]), *(_share(found[key]) for key in keys)]


def worst(scored: Sequence[Scored]) -> list[Scored]:
    return sorted(scored, key=lambda each: -abs(each.error))[:WORST]


def worst_table(scored: Sequence[Scored]) -> str:
    """The rows with the largest errors, each with its cause; raises KeyError for an unknown one."""
    known = json.loads(CAUSES.read_text(encoding="utf-8"))
    rows: list[list[str]] = []
    first: dict[str, str] = {}
    for each in worst(scored):
        row_id = each.run.row["row_id"]
        key = known["rows"][row_id]
        cause = f"as row {first[key]}" if key in first else known["causes"][key]
        first.setdefault(key, row_id)
        sizes = f"{each.run.measured_bytes / GIB:.1f} | {each.estimated_bytes / GIB:.1f}"
        rows.append([row_id, _what(each.run.row), sizes, f"{each.error:+.0%}", cause])
    head = ["row", "what", "measured, GiB | estimate", "off", "cause"]
    return _markdown(head, ["---:", "---", "---:", "---:", "---:", "---"], rows)


def _what(row: Row) -> str:
    source = row["source"].split(" ")[0].split("/")[-1]
    bits = "" if row["weights_dtype"] == "bf16" else f" {row['weights_dtype']}"
    words = row["targets"].split(" ")
    method = words[0] if row["method"] == "adapter" and len(words) > 1 else row["method"]
    return f"{source}: {row['model']} {method}{bits}, {row['micro_batch']} × {row['seq_len']}"


if __name__ == "__main__":
    main()
