"""From command to saved weights: ftcli and TRL's own program on the same rows, in turn.

    python -m scripts.bench_peers --model models/SmolLM2-135M-Instruct
    python -m scripts.bench_peers --model … --against ftcli-plain trl-best
    python -m scripts.bench_peers --model … --data … --rows 512 --modes lora qlora full --json FILE

Ratios are of two runs of the same turn: the speed of a shared machine changes from turn to turn.
LoRA r=16, alpha 32, dropout 0, all linear layers (QLoRA: over NF4, double quantisation; full: every
weight); learning rate 2e-4 (full: 2e-5), cosine after a warm-up of 3%, effective batch 16, one
epoch, no weight decay, loss on answers only, no validation, seed 42. TRL also trains on the line
break that ChatML writes after an answer's end token (one label a row).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftcli.memory.hardware import Hardware
from scripts.measured_process import Measured, measure

SHIPPED = Path("recipes/data/shop/train.jsonl")
GB = 10**9
LIMIT_SECONDS = 900  # bf16 that a CPU emulates would not end in an hour
RANK, ALPHA, BATCH, WARM_UP, SEED = 16, 32, 16, 0.03, 42
MODES = ("lora", "qlora", "full")
PROGRAMS = Path(sys.executable).parent
# No network, no telemetry.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True)
class Job:
    """One training, the same for every side."""

    model: Path
    rows: Path
    """JSONL of {"prompt", "completion"}."""
    mode: str
    precision: str
    """auto, bf16 or fp32."""
    hardware: Hardware
    folder: Path
    """For files that a side needs."""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def learning_rate(self) -> float:
        return 2e-5 if self.mode == "full" else 2e-4

    @property
    def bf16(self) -> bool:
        """Whether a side with settings for this machine uses bf16."""
        return self.hardware.fast_bf16 if self.precision == "auto" else self.precision == "bf16"

    @property
    def threads(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.hardware.cores)}

    def pairs(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.rows.read_text().splitlines()]


@dataclass(frozen=True)
class Command:
    """A command line and its environment variables."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)


Side = Callable[[Job], Command]
"""Gives the timed command."""


@dataclass(frozen=True)
class Outcome:
    """All runs of one side in one mode."""

    mode: str
    side: str
    runs: tuple[Measured, ...]
    ratios: tuple[float, ...]
    """Its seconds / ftcli's in the same turn."""
    loss: float | None
    """Held-out loss of its last run."""


def main() -> None:
    from ftcli.models.device import find_hardware  # this program holds no torch while others run

    arguments = _arguments()
    hardware = find_hardware("auto")
    work = Path("bench").absolute()
    train, held_out = _split(arguments.data, arguments.rows, arguments.held_out, work / "data")
    sides = {name: SIDES[name] for name in dict.fromkeys(("ftcli", *arguments.against))}
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
            for name in sides
        }
        if held_out is not None:
            base = _score(next(iter(jobs.values())), None, held_out)
            outcomes.append(Outcome(mode, "(the base)", (), (), base))
        outcomes += _compare(jobs, sides, arguments, held_out)
        if arguments.json:  # a mode that fails loses no other's figures
            _write(arguments, outcomes)
    _print(arguments, hardware, outcomes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHIPPED, help="JSONL of prompt, completion")
    parser.add_argument("--rows", type=int, default=32, help="trained on: the first of the file")
    parser.add_argument("--held-out", type=int, default=32, help="scored: the last; 0: none")
    parser.add_argument("--modes", choices=MODES, nargs="+", default=["lora"])
    others = [name for name in SIDES if name != "ftcli"]
    parser.add_argument("--against", choices=others, nargs="+", default=["trl-defaults"])
    parser.add_argument("--runs", type=int, default=3)
    once = "of them: run in the first turn alone (a quarter of an hour each)"
    parser.add_argument("--once", choices=others, nargs="+", default=[], help=once)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--limit", type=int, default=LIMIT_SECONDS, help="seconds, of one run")
    parser.add_argument("--json", type=Path, help="write everything here")
    return parser.parse_args()


def _split(source: Path, rows: int, held_out: int, target: Path) -> tuple[Path, Path | None]:
    """The first and the last rows, as {"prompt", "completion"} only."""
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
    """ftcli and the others in turns; a side that exceeds the limit gets no other turn."""
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
            loss = _score(job, saved_weights(job), rows)
        outcomes.append(Outcome(job.mode, name, tuple(runs[name]), ratios, loss))
        if job.mode == "full":  # models with their optimizers: 2 to 4 GB a side
            shutil.rmtree(job.out, ignore_errors=True)
    return outcomes


def _run(job: Job, side: Side, limit_seconds: int) -> Measured:
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    command = side(job)
    log = job.folder / "log"
    measured = measure(command.words, _environment(command, job), log, limit_seconds)
    if not measured.stopped:
        saved_weights(job)
    return measured


def _environment(command: Command, job: Job) -> dict[str, str]:
    """Delete everything of an earlier run: a user's rows are new."""
    caches = {"HF_HOME": str(job.folder / "cache")}
    return dict(os.environ) | OFFLINE | caches | command.environment


def _ftcli(job: Job) -> Command:
    return _with_recipe(job, optimized=True)


def _ftcli_plain(job: Job) -> Command:
    """Without optimisations: transformers' and PEFT's own forward on padded rows."""
    return _with_recipe(job, optimized=False)


def _with_recipe(job: Job, *, optimized: bool) -> Command:
    method: dict[str, object] = {"mode": job.mode}
    if job.mode != "full":
        method |= {"rank": RANK, "alpha": ALPHA}
    training: dict[str, object] = {
        "epochs": 1,
        "learning_rate": job.learning_rate,
        "batch_size": BATCH,
        "lr_scheduler": "cosine",
        "warmup_ratio": WARM_UP,
        "precision": job.precision,
        "seed": SEED,
        "optimizations": "auto" if optimized else "off",
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
    return Command([str(PROGRAMS / "ftcli"), "train", str(recipe)])


def saved_weights(job: Job) -> Path:
    """The file of the trained weights, the least deep one."""
    names = ["adapter_model.safetensors"]
    if job.mode == "full":
        names = ["model.safetensors", "model.safetensors.index.json"]
    found = [path for name in names for path in job.out.rglob(name)]
    if not found:
        raise SystemExit(f"no trained weights in {job.out}; see {job.folder / 'log'}")
    return min(found, key=lambda path: len(path.parts))


def _trl_defaults(job: Job) -> Command:
    """Its defaults for everything that is not set: micro-batch 8, checkpointing, bf16 autocast."""
    words = _trl_words(job, micro_batch=8)
    if job.precision != "auto":
        words += ["--bf16", str(job.bf16)]
    return Command(words)


def _trl_defaults_threads(job: Job) -> Command:
    """Its launcher defaults to one thread."""
    return Command(_trl_defaults(job).words, job.threads)


def _trl_best(job: Job) -> Command:
    words = _trl_words(job, micro_batch=4)
    words += ["--bf16", str(job.bf16), "--gradient_checkpointing", "False"]
    if job.bf16 and job.mode != "full":  # what full trains stays in fp32 under autocast
        words += ["--dtype", "bfloat16"]
    return Command(words, job.threads)


def _trl_words(job: Job, *, micro_batch: int) -> list[str]:
    rows = job.folder / "rows"
    rows.mkdir(exist_ok=True)
    with (rows / "train.jsonl").open("w") as file:
        for pair in job.pairs():
            row = {
                "prompt": [{"role": "user", "content": pair["prompt"]}],
                "completion": [{"role": "assistant", "content": pair["completion"]}],
            }
            file.write(json.dumps(row) + "\n")
    flags: dict[str, Any] = {
        "model_name_or_path": job.model,
        "dataset_name": rows,
        "output_dir": job.out,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARM_UP,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": BATCH // micro_batch,
        "num_train_epochs": 1,
        "completion_only_loss": True,
        "seed": SEED,
        "report_to": "none",
    }
    if job.mode != "full":
        flags |= {"use_peft": True, "lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0}
        flags |= {"lora_target_modules": "all-linear"}
    if job.mode == "qlora":
        flags |= {"load_in_4bit": True, "use_bnb_nested_quant": True}
    if job.hardware.kind == "cpu":
        flags |= {"use_cpu": True}  # it refuses to start otherwise
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return [str(PROGRAMS / "trl"), "sft", *words]


SIDES: dict[str, Side] = {
    "ftcli": _ftcli,
    "ftcli-plain": _ftcli_plain,
    "trl-defaults": _trl_defaults,
    "trl-defaults-threads": _trl_defaults_threads,
    "trl-best": _trl_best,
}


def _score(job: Job, saved: Path | None, rows: Path) -> float:
    words = [sys.executable, "-m", "scripts.bench_score", str(job.model), str(rows)]
    words += ["--mode", job.mode]
    words += ["--saved", str(saved)] if saved else []
    environment = dict(os.environ) | OFFLINE
    run = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(run.stdout)["loss"])


def _print(arguments: argparse.Namespace, hardware: Hardware, outcomes: Sequence[Outcome]) -> None:
    print(
        f"{hardware.name}, {hardware.cores} cores, {hardware.memory_bytes / GB:.0f} GB, bf16 "
        f"{'in hardware' if hardware.fast_bf16 else 'emulated'}; {arguments.rows} rows, "
        f"precision {arguments.precision}\n"
    )
    print("| mode | trainer | seconds, median | seconds / ftcli's: median (range) | ", end="")
    print("peak memory, GB | held-out loss |\n| --- | --- | --- | --- | --- | --- |")
    for outcome in outcomes:
        print(f"| {' | '.join(_cells(outcome))} |")
    print(f"\n{', '.join(f'{name} {version(name)}' for name in PACKAGES)}")


def _write(arguments: argparse.Namespace, outcomes: Sequence[Outcome]) -> None:
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    settings |= {"model": arguments.model.name, "data": "/".join(arguments.data.parts[-2:])}
    from scripts.machine import this_machine

    versions = {name: version(name) for name in PACKAGES}
    whole = {
        "machine": this_machine(),
        "settings": settings,
        "versions": dict.fromkeys(("ftcli", *arguments.against), versions),
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
