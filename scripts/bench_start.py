"""Seconds of `ftcli train` to its first step, next to the bare import of its libraries.

    python -m scripts.bench_start --model models/SmolLM2-135M-Instruct [--turns 5]

The rows are prepared already, as at every start but the first. Both sides take turns, each in a new
process. Prints JSON: seconds of the import alone; seconds of ftcli to the plan, and to the first
step, which comes after the preflight of the longest batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.bench_peers import OFFLINE
from scripts.machine import this_machine

SHIPPED = Path(__file__).resolve().parents[1] / "recipes" / "data" / "shop" / "train.jsonl"
BARE = "import torch, transformers, trl, peft"
# Output of ftcli → the point that it has reached.
MOMENTS = {"plan": "plan ", "first step": "check "}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {"import": [], **{name: [] for name in MOMENTS}}
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(arguments.model, Path(folder))
        program = [str(Path(sys.executable).parent / "ftcli")]
        subprocess.run([*program, "prepare", str(recipe)], capture_output=True, check=True)
        for turn in range(arguments.turns + 1):
            seconds = {"import": _imported()}
            seconds |= _started([*program, "train", str(recipe), "--fresh"])
            if turn:  # the first warms up the file cache
                for name, taken in seconds.items():
                    found[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in found.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(found[name], found["import"], strict=True))
        for name in MOMENTS
    }
    whole = {"seconds": medians, "times_the_import": ratios, "turns": found}
    print(json.dumps(whole | {"machine": this_machine()}, indent=2))


def _recipe(model: Path, folder: Path) -> Path:
    recipe = {
        "name": "start",
        "model": {"id": str(model.absolute())},
        "method": {"mode": "lora"},
        "data": {"train": str(SHIPPED), "validation": 0},
        "training": {"max_steps": 1, "batch_size": 4},
    }
    path = folder / "start.yaml"
    path.write_text(json.dumps(recipe))
    return path


def _imported() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE], capture_output=True, check=True)
    return time.perf_counter() - began


def _started(command: list[str]) -> dict[str, float]:
    """Seconds to each point; the run is stopped after the last."""
    began = time.perf_counter()
    environment = dict(os.environ) | OFFLINE
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        found: dict[str, float] = {}
        for line in process.stderr:
            for name, said in MOMENTS.items():
                if line.startswith(said):
                    found[name] = time.perf_counter() - began
            if len(found) == len(MOMENTS):
                process.kill()
    if len(found) < len(MOMENTS):
        raise SystemExit(f"{' '.join(command)} said nothing of its start: {found}")
    return found


if __name__ == "__main__":
    main()
