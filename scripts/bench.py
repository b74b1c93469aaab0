"""Time ftcli against other trainers, from command to saved adapter, interleaved.

Absolute times depend on the machine and on what else runs there; the median ratio of runs made in
turn does not. Settings of both sides: LoRA r=16, alpha=32, dropout 0, all linear layers, learning
rate 2e-4, effective batch 16, loss on answers only, one epoch, no validation.

    python scripts/bench.py --model models/SmolLM2-135M-Instruct
    python scripts/bench.py --model … --other llamafactory --other-bin DIR
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

Command = tuple[list[str], dict[str, str]]

SHIPPED = Path("recipes/data/shop/train.jsonl")


def main() -> None:
    arguments = _arguments()
    work = Path("bench").absolute()
    work.mkdir(exist_ok=True)
    data = _data(arguments.data, arguments.rows, work)
    commands: dict[str, Callable[[Path], Command]] = {
        "ftcli": lambda out: _ftcli(arguments, data, out),
        arguments.other: lambda out: OTHERS[arguments.other](arguments, data, out),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(arguments.runs):
        for name, command in commands.items():
            seconds[name].append(_time(command, work / f"{name}-{turn}", work / f"{name}.log"))
            print(f"{name} {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(
        json.dumps(
            {
                "rows": arguments.rows,
                "seconds": {name: statistics.median(s) for name, s in seconds.items()},
                "ratios": ratios,
                f"{arguments.other} / ftcli, median": statistics.median(ratios),
            },
            indent=2,
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHIPPED)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mode", choices=["lora", "qlora"], default="lora")
    parser.add_argument("--other", choices=list(OTHERS), default="trl")
    parser.add_argument("--other-bin", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--no-checkpointing", action="store_true", help="of the other trainer")
    return parser.parse_args()


def _data(source: Path, rows: int, work: Path) -> Path:
    """The first rows, as {"prompt", "completion"} and nothing else."""
    with source.open() as lines:
        pairs = [json.loads(line) for line in islice(lines, rows)]
    target = work / "data" / "rows.jsonl"
    target.parent.mkdir(exist_ok=True)
    with target.open("w") as file:
        for pair in pairs:
            kept = {key: pair[key] for key in ("prompt", "completion")}
            file.write(json.dumps(kept) + "\n")
    return target


def _time(command: Callable[[Path], Command], out: Path, log: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    words, environment = command(out)
    started = time.monotonic()
    with log.open("w") as file:
        subprocess.run(
            words, check=True, stdout=file, stderr=subprocess.STDOUT, env=os.environ | environment
        )
    seconds = time.monotonic() - started
    if not list(out.rglob("adapter_model.safetensors")):
        raise SystemExit(f"{words[0]} saved no adapter; see {log}")
    return seconds


def _ftcli(arguments: argparse.Namespace, data: Path, out: Path) -> Command:
    recipe = data.with_name("recipe.yaml")
    recipe.write_text(
        json.dumps(
            {
                "name": "bench",
                "model": {"id": str(arguments.model.absolute())},
                "method": {"mode": arguments.mode, "rank": 16, "alpha": 32},
                "data": {"train": str(data), "validation": 0, "shuffle": False},
                "training": {"epochs": 1, "learning_rate": 2e-4, "batch_size": 16},
                "output": str(out),
            }
        )
    )
    return [str(Path(sys.executable).with_name("ftcli")), "train", str(recipe)], {}


def _trl(arguments: argparse.Namespace, data: Path, out: Path) -> Command:
    """`trl sft` as its users run it: its own defaults for all that is not a setting above."""
    conversations = data.parent.with_name("trl-data")
    conversations.mkdir(exist_ok=True)
    with data.open() as lines, (conversations / "rows.jsonl").open("w") as file:
        for pair in map(json.loads, lines):
            row = {
                "prompt": [{"role": "user", "content": pair["prompt"]}],
                "completion": [{"role": "assistant", "content": pair["completion"]}],
            }
            file.write(json.dumps(row) + "\n")
    words = [str(arguments.other_bin / "trl"), "sft"]
    words += ["--model_name_or_path", str(arguments.model.absolute())]
    words += ["--dataset_name", str(conversations), "--output_dir", str(out)]
    words += ["--use_peft", "--lora_r", "16", "--lora_alpha", "32", "--lora_dropout", "0"]
    words += ["--lora_target_modules", "all-linear", "--learning_rate", "2e-4"]
    words += ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]
    words += ["--num_train_epochs", "1", "--report_to", "none"]
    if not torch.cuda.is_available():
        words += ["--use_cpu", "True"]  # it refuses to start otherwise
    if arguments.mode == "qlora":
        words += ["--load_in_4bit", "--use_bnb_nested_quant"]
    if arguments.precision == "fp32":
        words += ["--bf16", "False"]
    if arguments.no_checkpointing:
        words += ["--gradient_checkpointing", "False"]
    return words, {}


def _llamafactory(arguments: argparse.Namespace, data: Path, out: Path) -> Command:
    """LLaMA-Factory in an environment of its own; `cutoff_len` and template as its docs have it."""
    columns = {"prompt": "prompt", "response": "completion"}
    info = {"bench": {"file_name": data.name, "columns": columns}}
    (data.parent / "dataset_info.json").write_text(json.dumps(info))
    settings = {
        "model_name_or_path": str(arguments.model.absolute()),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "dataset": "bench",
        "dataset_dir": str(data.parent),
        "template": "chatml",
        "cutoff_len": 1024,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4,
        "num_train_epochs": 1.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.03,
        "bf16": arguments.precision == "bf16",
        "disable_gradient_checkpointing": arguments.no_checkpointing,
        "output_dir": str(out),
        "overwrite_output_dir": True,
        "report_to": "none",
        "use_cpu": True,
    }
    if arguments.mode == "qlora":
        settings |= {"quantization_bit": 4, "double_quantization": True}
    recipe = data.with_name("llamafactory.yaml")
    recipe.write_text(json.dumps(settings))
    command = [str(arguments.other_bin / "llamafactory-cli"), "train", str(recipe)]
    return command, {"OMP_NUM_THREADS": str(os.cpu_count())}


OTHERS: dict[str, Callable[[argparse.Namespace, Path, Path], Command]] = {
    "trl": _trl,
    "llamafactory": _llamafactory,
}


if __name__ == "__main__":
    main()
