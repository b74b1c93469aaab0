"""Time ftcli against other trainers, from command to saved weights, interleaved.

Absolute times depend on the machine and on what else runs there; the median ratio of runs made in
turn does not. Settings of all sides: scripts/peers.py; their environments: scripts/bench_peers.py.

    python scripts/bench.py --model models/SmolLM2-135M-Instruct
    python scripts/bench.py --model … --against ftcli-plain
    python scripts/bench.py --model … --data … --rows 512 --modes lora qlora full \\
        --against trl-defaults trl-defaults-threads llamafactory-best \\
        --once trl-defaults trl-defaults-threads --json bench/result.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_peers import programs_of, versions
from machine import this_machine
from measured_process import Measured, measure
from peers import (
    ALPHA,
    BATCH,
    MODES,
    OFFLINE,
    RANK,
    SEED,
    SIDES,
    WARM_UP,
    Command,
    Job,
    Side,
    saved_weights,
)

from ftcli.memory.hardware import Hardware
from ftcli.models.device import find_hardware

SHIPPED = Path("recipes/data/shop/train.jsonl")
SCORER = Path(__file__).with_name("bench_score.py")
GB = 10**9
LIMIT_SECONDS = 900  # bf16 that a CPU emulates would not end in an hour


@dataclass(frozen=True)
class Outcome:
    """All runs of one side in one mode."""

    mode: str
    side: str
    runs: tuple[Measured, ...]
    ratios: tuple[float, ...]
    """Its seconds / those of ftcli in the same turn."""
    loss: float | None
    """Held-out, of what its last run saved."""


def main() -> None:
    arguments = _arguments()
    hardware = find_hardware("auto")
    work = Path("bench").absolute()
    train, held_out = _split(arguments.data, arguments.rows, arguments.held_out, work / "data")
    sides = {"ftcli": OWN["ftcli"]} | {name: (OWN | SIDES)[name] for name in arguments.against}
    environments = {name: versions(_programs(side)) for name, side in sides.items()}
    outcomes: list[Outcome] = []
    for mode in arguments.modes:
        jobs = {
            name: Job(
                model=arguments.model.absolute(),
                rows=train,
                mode=mode,
                precision=arguments.precision,
                hardware=hardware,
                folder=work / f"{mode}-{name}",
            )
            for name, side in sides.items()
            if mode in side.modes
        }
        if held_out is not None:
            base = _score(next(iter(jobs.values())), None, held_out)
            outcomes.append(Outcome(mode, "(the base)", (), (), base))
        outcomes += _compare(jobs, sides, arguments, held_out)
        if arguments.json:  # a mode that fails loses no other's figures
            _write(arguments, outcomes, environments)
    _print(arguments, hardware, outcomes, environments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHIPPED, help="JSONL of prompt, completion")
    parser.add_argument("--rows", type=int, default=32, help="trained on: the first of the file")
    parser.add_argument("--held-out", type=int, default=32, help="scored: the last; 0: none")
    parser.add_argument("--modes", choices=MODES, nargs="+", default=["lora"])
    others = ["ftcli-plain", *SIDES]
    parser.add_argument("--against", choices=others, nargs="+", default=["trl-defaults"])
    parser.add_argument("--runs", type=int, default=3)
    once = "of them: run in the first turn alone (a quarter of an hour each)"
    parser.add_argument("--once", choices=others, nargs="+", default=[], help=once)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--limit", type=int, default=LIMIT_SECONDS, help="seconds, of one run")
    parser.add_argument("--json", type=Path, help="write everything here")
    return parser.parse_args()


def _split(source: Path, rows: int, held_out: int, target: Path) -> tuple[Path, Path | None]:
    """The first and the last rows, as {"prompt", "completion"} and nothing else."""
    pairs = [json.loads(line) for line in source.read_text().splitlines()]
    if rows + held_out > len(pairs):
        raise SystemExit(f"{source} has {len(pairs)} rows, not {rows} and {held_out} others")
    target.mkdir(parents=True, exist_ok=True)
    chosen = {"train": pairs[:rows], "held-out": pairs[len(pairs) - held_out :]}
    for name, part in chosen.items():
        with (target / f"{name}.jsonl").open("w") as file:
            for pair in part:
                kept = {key: pair[key] for key in ("prompt", "completion")}
                file.write(json.dumps(kept) + "\n")
    return target / "train.jsonl", target / "held-out.jsonl" if held_out else None


def _compare(
    jobs: dict[str, Job], sides: dict[str, Side], arguments: argparse.Namespace, rows: Path | None
) -> list[Outcome]:
    """ftcli and the others in turn, as often as asked; who passes the limit has no other turn."""
    runs: dict[str, list[Measured]] = {name: [] for name in jobs}
    for turn in range(arguments.runs):
        for name, job in jobs.items():
            if (turn and name in arguments.once) or any(run.stopped for run in runs[name]):
                continue
            runs[name].append(_run(job, sides[name], arguments.limit))
            said = f"{job.mode} {name} {runs[name][-1].seconds:.1f} s"
            print(said, file=sys.stderr, flush=True)
    outcomes = []
    for name, job in jobs.items():
        pairs = zip(runs["ftcli"], runs[name], strict=False)
        ratios = tuple(other.seconds / own.seconds for own, other in pairs if not own.stopped)
        loss = None
        if rows is not None and not any(run.stopped for run in runs[name]):
            _call(sides[name].convert(job, _programs(sides[name])), job)
            loss = _score(job, saved_weights(job), rows)
        outcomes.append(Outcome(job.mode, name, tuple(runs[name]), ratios, loss))
        if job.mode == "full":  # models with their optimizers: 2 to 4 GB a side
            shutil.rmtree(job.out, ignore_errors=True)
    return outcomes


def _run(job: Job, side: Side, limit_seconds: int) -> Measured:
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    programs = _programs(side)
    _call(side.prepare(job, programs), job)
    command = side.command(job, programs)
    log = job.folder / "log"
    measured = measure(command.words, _environment(command, job), log, limit_seconds)
    if not measured.stopped:
        saved_weights(job)
    return measured


def _environment(command: Command, job: Job) -> dict[str, str]:
    """Nothing is left from an earlier run: a user's rows are new."""
    caches = {"HF_HOME": str(job.folder / "cache")}
    return dict(os.environ) | OFFLINE | caches | command.environment


def _call(commands: list[Command], job: Job) -> None:
    for command in commands:
        with (job.folder / "log").open("a") as log:
            environment = _environment(command, job)
            subprocess.run(command.words, env=environment, stdout=log, stderr=log, check=True)


def _programs(side: Side) -> Path:
    if side.environment == "ftcli":
        return Path(sys.executable).parent
    return programs_of(side.environment)


def _ftcli(job: Job, programs: Path) -> Command:
    return _with_recipe(job, programs, fast=True)


def _ftcli_plain(job: Job, programs: Path) -> Command:
    """Without levers: transformers' and PEFT's own forward on padded rows."""
    return _with_recipe(job, programs, fast=False)


def _with_recipe(job: Job, programs: Path, *, fast: bool) -> Command:
    method: dict[str, object] = {"mode": job.mode}
    if job.mode != "full":
        method |= {"rank": RANK, "alpha": ALPHA}
    training: dict[str, object] = {
        "epochs": 1,
        "learning_rate": job.learning_rate,
        "batch_size": BATCH,
        "scheduler": "cosine",
        "warmup_ratio": WARM_UP,
        "precision": job.precision,
        "seed": SEED,
        "fast": "all" if fast else False,
    }
    # the others train on equal rows, too
    data = {"train": str(job.rows), "validation": 0, "shuffle": False, "deduplicate": False}
    recipe = job.folder / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "bench",
                "model": {"id": str(job.model)},
                "method": method,
                "data": data,
                "training": training,
                "output": str(job.out),
            }
        )
    )
    return Command([str(programs / "ftcli"), "train", str(recipe)])


OWN = {"ftcli": Side("ftcli", _ftcli), "ftcli-plain": Side("ftcli", _ftcli_plain)}


def _score(job: Job, saved: Path | None, rows: Path) -> float:
    words = [sys.executable, str(SCORER), str(job.model), str(rows), "--mode", job.mode]
    words += ["--saved", str(saved)] if saved else []
    environment = dict(os.environ) | OFFLINE
    run = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(run.stdout)["loss"])


def _print(
    arguments: argparse.Namespace,
    hardware: Hardware,
    outcomes: Sequence[Outcome],
    environments: dict[str, dict[str, str]],
) -> None:
    print(
        f"{hardware.name}, {hardware.cores} cores, {hardware.memory_bytes / GB:.0f} GB, bf16 "
        f"{'in hardware' if hardware.fast_bf16 else 'emulated'}; {arguments.rows} rows, "
        f"precision {arguments.precision}\n"
    )
    print("| mode | trainer | seconds, median | seconds / ftcli's: median (range) | ", end="")
    print("peak memory, GB | held-out loss |\n| --- | --- | --- | --- | --- | --- |")
    for outcome in outcomes:
        print(f"| {' | '.join(_cells(outcome))} |")
    print()
    for name, found in environments.items():
        print(f"- {name}: {', '.join(f'{key} {value}' for key, value in found.items())}")


def _write(
    arguments: argparse.Namespace,
    outcomes: Sequence[Outcome],
    environments: dict[str, dict[str, str]],
) -> None:
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    settings |= {"model": arguments.model.name, "data": "/".join(arguments.data.parts[-2:])}
    whole = {
        "machine": this_machine(),
        "settings": settings,
        "versions": environments,
        "outcomes": [_record(outcome) for outcome in outcomes],
    }
    arguments.json.write_text(json.dumps(whole, indent=2) + "\n")


def _cells(outcome: Outcome) -> list[str]:
    loss = "–" if outcome.loss is None else f"{outcome.loss:.4f}"
    if not outcome.runs:
        return [outcome.mode, outcome.side, "–", "–", "–", loss]
    over = "over " if any(run.stopped for run in outcome.runs) else ""
    seconds = statistics.median(run.seconds for run in outcome.runs)
    ratio = f"{over}{statistics.median(outcome.ratios):.2f}" if outcome.ratios else "–"
    if len(outcome.ratios) > 1:
        ratio += f" ({min(outcome.ratios):.2f} to {max(outcome.ratios):.2f})"
    peak = max(run.peak_bytes for run in outcome.runs) / GB
    return [outcome.mode, outcome.side, f"{over}{seconds:.1f}", ratio, f"{peak:.2f}", loss]


def _record(outcome: Outcome) -> dict[str, Any]:
    return {
        "mode": outcome.mode,
        "side": outcome.side,
        "seconds": [run.seconds for run in outcome.runs],
        "peak_bytes": [run.peak_bytes for run in outcome.runs],
        "stopped": [run.stopped for run in outcome.runs],
        "ratios": list(outcome.ratios),
        "held_out_loss": outcome.loss,
    }


if __name__ == "__main__":
    main()
