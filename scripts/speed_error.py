"""The time estimate against published figures: its error, and its coefficients.

python -m scripts.speed_error              the error on the half that was held back
python -m scripts.speed_error --fit        fit on the other half, and write the coefficients
python -m scripts.speed_error --write      write the table of docs/performance.md
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ftcli.errors import FtcliError
from ftcli.memory import Choices, Stack
from ftcli.memory.architecture import Architecture
from ftcli.memory.hardware import GPU_SPEEDS, GpuSpeed, gpu_name
from ftcli.memory.speed import (
    Coefficients,
    coefficients,
    require_timed,
    stated_rates,
    step_time,
    store,
)
from scripts.measured_runs import DATA, NotExpressible, Row, measured_architecture, read_rows

TABLE = DATA / "measured_speed.csv"
PAGE = DATA.parent / "performance.md"
BEGIN, END = "<!-- begin: time -->", "<!-- end -->"

# GPUs of the table that `ftcli` does not know by name: NVIDIA's data sheets.
OTHER_GPUS = {
    "L40": GpuSpeed(181, 864),
    "L40S": GpuSpeed(362, 864),
    "B200": GpuSpeed(2250, 8000),
    "RTX PRO 6000": GpuSpeed(252, 1792),
}
# Of the coefficients that are fitted: where the search begins, and between what they may be.
BOUNDS = {
    "products": (0.65, 0.3, 0.9),
    "exponent": (0.15, 0.0, 0.4),
    "low_power": (0.5, 0.2, 1.0),
    "moved": (4.7, 2.0, 12.0),
    "fused": (0.6, 0.2, 1.0),
    "moved_lora": (3.0, 0.0, 10.0),
    "launch_seconds": (7e-6, 2e-6, 3e-5),
}
# Of the logarithms of the errors on the fitted half.
INTERVAL = (0.05, 0.95)


@dataclass(frozen=True)
class TimedRun:
    """A published speed, as inputs of the estimate."""

    row: Row
    architecture: Architecture
    choices: Choices
    gpu: GpuSpeed
    tokens_per_second: float

    def error(self, fitted: Coefficients) -> float:
        """Logarithm of estimated by published seconds."""
        rates = stated_rates(self.gpu, fitted)
        found = step_time(self.architecture, self.choices, rates, fitted)
        return math.log(self.tokens_per_second / found.tokens_per_second)


def timed_runs(rows: Sequence[Row]) -> tuple[list[TimedRun], list[tuple[Row, str]]]:
    """The rows that the estimate can express, and the others with the reason."""
    found, others = [], []
    for row in rows:
        try:
            found.append(timed_run(row))
        except (NotExpressible, FtcliError, KeyError, ValueError) as reason:
            others.append((row, f"{type(reason).__name__}: {reason}"))
    return found, others


def timed_run(row: Row) -> TimedRun:
    """Raises NotExpressible, FtcliError, KeyError or ValueError."""
    architecture = measured_architecture(row["model"])
    choices = timed_choices(row)
    require_timed(architecture, choices)
    gpu = OTHER_GPUS.get(row["gpu"]) or GPU_SPEEDS.get(gpu_name(row["gpu"]) or "")
    if gpu is None:
        raise NotExpressible(f"gpu {row['gpu']!r}")
    return TimedRun(row, architecture, choices, gpu, float(row["tokens_per_second"]))


def timed_choices(row: Row) -> Choices:
    mode: Any = row["method"]
    half: Any = "fp16" if "fp16" in row["precision"] else "bf16"
    pure = "pure" in row["precision"] or (mode == "full" and row["weights_dtype"] != "fp32")
    seq_len = int(row["seq_len"])
    longest = float(row["tokens_per_row"] or seq_len) if row["packing"] == "1" else seq_len
    attention: Any = row["attention"]
    return Choices(
        mode=mode,
        precision="pure-bf16" if pure else half,
        weights_dtype="fp32" if row["weights_dtype"] == "fp32" else "auto",
        optimizer="adamw-8bit" if "8bit" in row["optimizer"] else "adamw",
        rank=int(row["rank"] or 8),
        target_modules="all-linear",
        micro_batch=int(row["micro_batch"]),
        seq_len=seq_len,
        longest_row=min(seq_len, round(longest)),
        gradient_accumulation=int(row["grad_accum"]),
        gradient_checkpointing=row["grad_checkpointing"] != "0",
        activation_offload=row["grad_checkpointing"] == "offload",
        attention=attention,
        loss="full",
        optimized=row["kernels"] == "fused",
        liger=row["kernels"] == "fused",
        stack=Stack(compiled=row["kernels"] == "compiled", overlaps_copies=True),
    )


def halves(runs: Sequence[TimedRun]) -> tuple[list[TimedRun], list[TimedRun]]:
    """To fit on, and held back: every second row."""
    return list(runs[::2]), list(runs[1::2])


def fit(runs: Sequence[TimedRun]) -> Coefficients:
    """The coefficients with the least mean absolute error of the logarithms."""

    def of(point: Sequence[float]) -> Coefficients:
        names = zip(BOUNDS, point, strict=True)
        values = {name: _between(x, *BOUNDS[name][1:]) for name, x in names}
        return Coefficients(**values, low=1.0, high=1.0)

    def loss(point: Sequence[float]) -> float:
        return float(np.mean([abs(run.error(of(point))) for run in runs]))

    start = [_logit((first - low) / (high - low)) for first, low, high in BOUNDS.values()]
    found = minimize(loss, start, method="Nelder-Mead", options={"maxfev": 2000, "xatol": 1e-3})
    best = of(found.x)
    errors = [run.error(best) for run in runs]
    low, high = (math.exp(-np.quantile(errors, share)) for share in reversed(INTERVAL))
    return Coefficients(**asdict(best) | {"low": low, "high": high})


def _between(x: float, low: float, high: float) -> float:
    return low + (high - low) / (1 + math.exp(-x))


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if 0 < share < 1 else -6.0


@dataclass(frozen=True)
class Score:
    """How the estimate does on some runs."""

    runs: int
    median: float
    ninth: float
    within_half: float
    covered: float


def score(runs: Sequence[TimedRun], fitted: Coefficients) -> Score:
    errors = np.array([run.error(fitted) for run in runs])
    off = np.abs(np.exp(errors) - 1)
    inside = (-errors >= math.log(fitted.low)) & (-errors <= math.log(fitted.high))
    return Score(
        len(runs),
        float(np.median(off)),
        float(np.quantile(off, 0.9)),
        float(np.mean(off <= 0.5)),
        float(np.mean(inside)),
    )


def page(text: str) -> str:
    """docs/performance.md with its table of this error."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def table() -> str:
    """The error by GPU on the runs that were held back, and on those that were fitted."""
    fitted_on, held_back = halves(timed_runs(read_rows(TABLE))[0])
    names = sorted({run.row["gpu"] for run in held_back})
    groups = {name: [run for run in held_back if run.row["gpu"] == name] for name in names}
    lines = [
        "| runs | | median error | nine in ten within | within 50% | in the interval |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in {"held back": held_back, **groups, "fitted on": fitted_on}.items():
        found = score(runs, coefficients())
        shares = (found.median, found.ninth, found.within_half, found.covered)
        figures = " | ".join(f"{share:.0%}" for share in shares)
        lines.append(f"| {name} | {found.runs} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    runs, others = timed_runs(read_rows(TABLE))
    fitted_on, _ = halves(runs)
    if arguments.fit:
        rounded = {name: float(f"{v:.4g}") for name, v in asdict(fit(fitted_on)).items()}
        store("fitted", rounded)
    if arguments.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())
    print(*(f"not expressed: {row['row_id']}: {reason[:80]}" for row, reason in others), sep="\n")
    for run in sorted(runs, key=lambda each: -abs(each.error(coefficients())))[:12]:
        shown = ("row_id", "framework", "gpu", "model", "method", "micro_batch", "seq_len")
        off = math.exp(run.error(coefficients())) - 1
        print(f"{off:+.0%}", *(run.row[name][:24] for name in shown))


if __name__ == "__main__":
    main()
