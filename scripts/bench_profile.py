"""Where the time of an optimizer step goes, with all levers.

    python scripts/bench_profile.py --model models/SmolLM2-135M-Instruct [--data rows.jsonl]

Prints JSON: seconds of a step by part, the median over steps, as torch's profiler tells them of the
thread that leads the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench_levers import build, step_parser
from machine import this_machine
from torch.profiler import ProfilerActivity, profile

from ftcli.memory.head import HEAD_TILE_TOKENS
from ftcli.training.trainer import FtcliTrainer

# Nodes of ours, by the names that the profiler shows: forward and backward.
NODES = {
    "attention": ("_Packed", "_PackedBackward"),
    "head": ("_HeadLoss", "_HeadLossBackward"),
    "norms": ("_Norm", "_NormBackward"),
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(arguments, Path(folder))
    steps = []
    for step in range(arguments.steps + 1):
        window = trainer.data.windows[step]
        if step:  # the first warms up
            steps.append(_parts(trainer, window))
        else:
            _step(trainer, window)
    found = {name: statistics.median(each[name] for each in steps) for name in steps[0]}
    precision = str(trainer.accelerator.mixed_precision)
    told = {"mode": arguments.mode, "precision": precision, "steps": arguments.steps}
    print(json.dumps(told | {"seconds": found, "machine": this_machine()}, indent=2))


def _arguments() -> argparse.Namespace:
    parser = step_parser(__doc__)
    parser.set_defaults(instruction=0, steps=5)
    return parser.parse_args()


def _step(trainer: FtcliTrainer, window: list[int]) -> None:
    trainer.gradients_of(trainer.divide(window, len(window)), "a benchmark")
    trainer.forget_gradients()


def _parts(trainer: FtcliTrainer, window: list[int]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        _step(trainer, window)
    averages = list(profiler.key_averages(group_by_input_shape=True))
    found: Counter[str] = Counter()
    for event in averages:
        for part, names in NODES.items():
            if event.key in names:
                found[part] += event.cpu_time_total
        if event.key in PRODUCTS:
            found[_product(trainer, event)] += event.self_cpu_time_total
    found["step"] = sum(event.self_cpu_time_total for event in averages)
    known = sum(found[part] for part in ("base", "updates", *NODES))
    found["rest"] = found["step"] - known
    return {name: taken / 1e6 for name, taken in found.items() if name != "of the head"}


def _product(trainer: FtcliTrainer, event: Any) -> str:
    """Of the head (which counts them itself), of an update, or of the base."""
    sizes = {size for shape in event.input_shapes for size in shape}
    vocabulary, rank = len(trainer.model.get_output_embeddings().weight), _rank(trainer)
    if sizes & {vocabulary, HEAD_TILE_TOKENS, vocabulary % HEAD_TILE_TOKENS} - {0}:
        return "of the head"
    return "updates" if rank in sizes else "base"


def _rank(trainer: FtcliTrainer) -> int | None:
    configs = getattr(trainer.model, "peft_config", {})
    return next((config.r for config in configs.values()), None)


if __name__ == "__main__":
    main()
