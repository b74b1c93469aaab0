"""What full fine-tuning forgets, and what data.replay and training.hold save of it.

    python scripts/forgetting.py --model models/SmolLM2-135M-Instruct --data shop.jsonl \
        --general wiki.jsonl c4.jsonl

Every cell is a recipe that `ftcli train` runs; ftcli's own functions measure it: the loss of the
task's validation and test rows, how many answers end by themselves, and the perplexity of general
text that nothing was trained on. Of several --rates, short probes choose the one at which full
fine-tuning forgets (--rise); cells with replayed rows take as many steps more as they need to see
as many rows of the task. What is finished is kept in --work: the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from forgetting_cells import Cell, General, measured, scored, split_general
from forgetting_figure import draw, table

from ftcli.disk import write_json
from ftcli.metrics.likelihood import difference

# Of the perplexity that a replayed run must save, and of the task loss that it may cost.
LEAST_SAVED, MOST_COST = 0.5, 0.03


def main() -> int:
    asked = _arguments()
    work: Path = asked.work
    general = split_general(asked)
    rate, probes = _choose_rate(asked, general)
    found: dict[str, Any] = {}
    for cell in _cells(asked):
        found[cell.name] = measured(cell, asked, cell.rate or rate, asked.steps, general)
        write_json(work / "so_far.json", found)
    result = _result(asked, found, rate, probes, general)
    write_json(asked.output, result)
    draw(result, asked.figure)
    print(table(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", help="of the model, in the figures; none: as its folder")
    parser.add_argument("--data", type=Path, required=True, help="rows of the task")
    parser.add_argument("--general", type=Path, nargs="+", required=True, help="rows with a text")
    parser.add_argument("--output", type=Path, default=Path("docs/data/forgetting.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/forgetting.svg"))
    parser.add_argument("--work", type=Path, default=Path("bench/forgetting"))
    parser.add_argument("--steps", type=int, default=72)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--validation", type=int, default=60, help="rows of the task")
    parser.add_argument("--test", type=int, default=200, help="rows of the task")
    parser.add_argument("--answers", type=int, default=40, help="test rows that are answered")
    parser.add_argument("--measured-tokens", type=int, default=60_000)
    parser.add_argument("--rise", type=float, default=0.2, help="of the general perplexity")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4, 6e-4, 8e-4])
    parser.add_argument("--probe-steps", type=int, default=20)
    parser.add_argument("--lora-rate", type=float, default=8e-4)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.1, 0.2])
    parser.add_argument("--holds", type=float, nargs="*", default=[2.0, 6.0])
    return parser.parse_args()


def _cells(asked: argparse.Namespace) -> Iterator[Cell]:
    yield Cell("full")
    for share in asked.shares:
        yield Cell(f"full + replay {share:.0%}", replay=share)
    for hold in asked.holds:
        yield Cell(f"full + hold {hold:g}", hold=hold)
    yield Cell("LoRA", mode="lora", rate=asked.lora_rate)


# The learning rate


def _choose_rate(
    asked: argparse.Namespace, general: General
) -> tuple[float, list[dict[str, float]]]:
    """The least of --rates at which the whole run forgets by --rise, beginning with the first of
    which a short probe forgets half as much; else the greatest. One rate needs no probe."""
    probes: list[dict[str, float]] = []
    if len(asked.rates) == 1:
        return asked.rates[0], probes
    few = replace(general, measured=general.measured[:: max(1, len(general.measured) // 40)])
    quick = argparse.Namespace(**vars(asked) | {"answers": 1})
    for rate in asked.rates:
        probe = measured(Cell(f"probe {rate:g}"), quick, rate, asked.probe_steps, few)
        probes.append({"learning_rate": rate, "steps": asked.probe_steps, "rise": _rise(probe)})
        last = rate == asked.rates[-1]
        if probes[-1]["rise"] < asked.rise / 2 and not last:
            continue
        whole = measured(Cell("full"), asked, rate, asked.steps, general)
        if _rise(whole) >= asked.rise or last:
            return rate, probes
    raise AssertionError("the last rate returns")


def _rise(cell: Mapping[str, Any]) -> float:
    return float(cell["general"]["change"])


# What it shows


def _result(
    asked: argparse.Namespace,
    found: dict[str, Any],
    rate: float,
    probes: list[dict[str, float]],
    general: General,
) -> dict[str, Any]:
    full = found["full"]
    cells = [_against(cell, full) for cell in found.values()]
    return {
        "model": asked.name or asked.model.name,
        "task_rows": "/".join(asked.data.absolute().parts[-2:]),
        "general_files": [file.name for file in asked.general],
        "general_tokens": full["general"]["tokens"],
        "general_digest": general.digest,
        "validation_rows": asked.validation,
        "test_rows": asked.test,
        "answered_rows": asked.answers,
        "learning_rate": rate,
        "probes": probes,
        "base": {**full["base"], "perplexity": full["general"]["before"]},
        "rise_asked_for": asked.rise,
        "cells": cells,
    }


def _against(cell: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """A cell beside full fine-tuning: what of the rise is left, and what it costs the task."""
    gap = difference(scored(full["rows"]), scored(cell["rows"]))
    low, high = gap.interval
    left = cell["general"]["change"] / full["general"]["change"]
    validation = cell["validation_loss"] / full["validation_loss"] - 1
    test = gap.value / full["test_loss"]
    return {
        **{name: value for name, value in cell.items() if name not in ("rows", "base")},
        "rise_left": left,
        "validation_loss_change": validation,
        "test_loss_change": test,
        "test_loss_change_interval": [low / full["test_loss"], high / full["test_loss"]],
        "halves_the_rise": left <= LEAST_SAVED,
        "within_3_percent": max(validation, test) <= MOST_COST,
    }


if __name__ == "__main__":
    sys.exit(main())
