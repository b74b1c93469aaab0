"""How preparing and training grow with the number of rows and of epochs.

    python scripts/bench_scale.py --model models/SmolLM2-135M-Instruct [--most 50000]

Rows are the shipped ones, again and again, each with a number of its own; what is trained is a tiny
random model with the tokenizer of the one that is named, so that what grows with the rows would
show. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from machine import this_machine
from measured_process import measure
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from ftcli.config.loader import load_recipe
from ftcli.console import Terminal
from ftcli.data.row import Reject
from ftcli.data.sides import find_sides
from ftcli.data.tokenizing.bulk import ROWS_AT_ONCE, encode_items
from ftcli.data.tokenizing.tokenize import _items, all_cores
from ftcli.kernels.cpu import collect_seldom
from ftcli.memory.shapes import model_source
from ftcli.models.load import load_renderer
from ftcli.runs.folder import RunFolder

SHIPPED = Path("recipes/data/shop/train.jsonl")
LEAST_ROWS = 500
LIMIT_SECONDS = 1800
TURNS = 3  # of the parts of prepare
SHORT_RUNS = 3  # of the training that takes seconds, which differs most from run to run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--most", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=3, help="of the trainings; 0: none")
    arguments = parser.parse_args()
    collect_seldom()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _tiny_model(arguments.model, work / "model")
        found: dict[str, Any] = {"rows": [LEAST_ROWS, arguments.most]}
        few, many = (_recipe(work, rows, 1, None) for rows in found["rows"])
        _ftcli("prepare", _recipe(work, LEAST_ROWS, 2, None))  # reads the libraries from disk
        prepared = _prepared(few, many)
        if arguments.turns:
            ways = _trained(work, arguments.most, arguments.turns)
            found["train"] = {"ways": ways, "machine": this_machine()}
        # holds a gigabyte of rows, and so stands behind what `measure` measures
        found["prepare"] = prepared | _parts(many) | {"machine": this_machine()}
    print(json.dumps(found, indent=2))


def _tiny_model(source: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _recipe(work: Path, rows: int, epochs: float, steps: int | None) -> Path:
    """Rows that differ, and a recipe of them."""
    data = work / f"rows-{rows}.jsonl"
    if not data.exists():
        pairs = [json.loads(line) for line in SHIPPED.open(encoding="utf-8")]
        with data.open("w", encoding="utf-8") as file:
            for number, pair in enumerate(islice(cycle(pairs), rows)):
                row = {
                    "prompt": f"{number}. {pair['prompt']}",
                    "completion": f"{number}. {pair['completion']}",
                }
                file.write(json.dumps(row) + "\n")
    name = f"{rows}-{epochs:g}-{steps}"
    recipe = {
        "name": name,
        "model": {"id": str(work / "model")},
        "method": {"mode": "lora", "rank": 4},
        "data": {"train": data.name, "validation": 0},
        "training": {"epochs": epochs, "max_steps": steps, "save_steps": 10**6},
        "output": f"runs/{name}",
    }
    path = work / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def _ftcli(command: str, recipe: Path, *flags: str) -> tuple[float, int, dict[str, Any]]:
    """Seconds, peak bytes and result of a command."""
    log = recipe.with_suffix(f".{command}.log")
    log.unlink(missing_ok=True)
    words = [str(Path(sys.executable).with_name("ftcli")), command, str(recipe), "--json", *flags]
    found = measure(words, os.environ, log, LIMIT_SECONDS)
    text = log.read_text(encoding="utf-8")
    result: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found.seconds, found.peak_bytes, result


def _prepared(few: Path, many: Path) -> dict[str, Any]:
    """Rows a second of the command behind its start, and its peaks."""
    few_seconds, few_bytes, few_found = _ftcli("prepare", few)
    seconds, many_bytes, many_found = _ftcli("prepare", many)
    rows = many_found["rows_accepted"] - few_found["rows_accepted"]
    few_again, many_again = (_ftcli("prepare", recipe)[0] for recipe in (few, many))
    return {
        "rows_a_second": rows / (seconds - few_seconds),
        "seconds_when_prepared_already": many_again - few_again,
        "peak_bytes": [few_bytes, many_bytes],
    }


def _parts(path: Path) -> dict[str, float]:
    """Rows a second: read, compared and split; rendered and tokenised; of the tokenizer alone.

    Medians of turns, in which each is done once.
    """
    loaded = load_recipe(path)
    source = model_source(loaded.recipe.model.id, loaded.base)
    renderer = load_renderer(loaded, source)
    sides = find_sides(loaded.recipe.data, loaded.base, 42, Terminal())
    with all_cores():
        rows = list(encode_items(_items(sides, loaded.base), renderer))
        ids = [row[2].input_ids for row in rows if not isinstance(row, Reject)]
        texts = [str(renderer.tokenizer.decode(row)) for row in ids]
        blocks = [
            texts[start : start + ROWS_AT_ONCE] for start in range(0, len(texts), ROWS_AT_ONCE)
        ]
        del rows, ids
        alone = renderer.tokenizer.backend_tokenizer.encode_batch_fast
        parts: dict[str, Callable[[], object]] = {
            "read_and_split": lambda: find_sides(loaded.recipe.data, loaded.base, 42, Terminal()),
            "rendered_and_tokenised": lambda: _drop(
                encode_items(_items(sides, loaded.base), renderer)
            ),
            "of_the_tokenizer_alone": lambda: _drop(map(alone, blocks)),
            "of_the_tokenizer_as_transformers_calls_it": lambda: _drop(
                renderer.tokenizer(block)["input_ids"] for block in blocks
            ),
        }
        taken = [{name: _seconds(part) for name, part in parts.items()} for _ in range(TURNS)]
    return {
        f"rows_a_second_{name}": median(len(texts) / turn[name] for turn in taken) for name in parts
    }


def _drop(found: Iterable[object]) -> None:
    """One after the other, as `ftcli prepare` writes them: to keep them takes time, too."""
    deque(found, maxlen=0)


def _seconds(part: Callable[[], object]) -> float:
    started = time.perf_counter()
    part()
    return time.perf_counter() - started


def _trained(work: Path, most: int, turns: int) -> dict[str, Any]:
    """Tokens a second, and memory, of few rows and many, of one epoch and twenty."""
    ways = {
        "few rows, 1 epoch": _recipe(work, LEAST_ROWS, 1, None),
        "few rows, 20 epochs": _recipe(work, LEAST_ROWS, 20, None),
        "many rows, as many steps as 20 epochs of few": _recipe(
            work, most, 1, LEAST_ROWS * 20 // 16
        ),
    }
    runs: dict[str, list[Path]] = {name: [] for name in ways}
    peaks: dict[str, int] = {}
    short, *_ = ways
    for turn in range(turns):
        # there and back: a machine that others use too gets slower or faster over minutes
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            for _ in range(SHORT_RUNS if name == short else 1):
                _, peak, result = _ftcli("train", ways[name], "--fresh")
                peaks[name] = max(peak, peaks.get(name, 0))
                runs[name].append(Path(result["run_dir"]))
            print(f"{name}: {_speed(runs[name][-1]):,.0f} tokens/s", file=sys.stderr, flush=True)
    fast = {name: _fast_steps(done) for name, done in runs.items()}
    return {
        name: {
            "tokens_a_second": median(map(_speed, done)),
            "tokens_a_second_of_fast_steps": fast[name],
            "by_few_rows": fast[name] / fast[short],
            "peak_bytes": peaks[name],
        }
        for name, done in runs.items()
    }


def _speed(run: Path) -> float:
    """Tokens a second of all steps of a training."""
    steps = _steps(run)
    return sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)


def _fast_steps(runs: Iterable[Path]) -> float:
    """Tokens a second that one in twenty steps of the second halves of trainings reaches.

    What grows with rows or steps slows these down too, other programs do not.
    """
    later: list[float] = []
    for steps in map(_steps, runs):
        later += [step["tokens"] / step["seconds"] for step in steps[len(steps) // 2 :]]
    return quantiles(later, n=20, method="inclusive")[-1]


def _steps(run: Path) -> list[dict[str, float]]:
    """Tokens and seconds of each step."""
    return [json.loads(line) for line in RunFolder(run).speed.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(str(error)) from error
