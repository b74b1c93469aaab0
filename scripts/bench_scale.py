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
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from machine import this_machine
from measured_process import measure
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from ftcli.console import Terminal
from ftcli.data.row import Reject
from ftcli.data.sides import find_sides
from ftcli.engine.bulk import ROWS_AT_ONCE, encode_items
from ftcli.engine.model import load_renderer
from ftcli.engine.tokenising import _items, all_cores
from ftcli.loading import load_recipe
from ftcli.shapes import model_source

SHIPPED = Path("recipes/data/shop/train.jsonl")
LEAST_ROWS = 500
LIMIT_SECONDS = 1800
TURNS = 3  # of the parts of prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--most", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=3, help="of the trainings; 0: none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _tiny_model(arguments.model, work / "model")
        found = {
            "rows": [LEAST_ROWS, arguments.most],
            "prepare": _prepared(work, arguments.most) | {"machine": this_machine()},
        }
        if arguments.turns:
            ways = _trained(work, arguments.most, arguments.turns)
            found["train"] = {"ways": ways, "machine": this_machine()}
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


def _prepared(work: Path, most: int) -> dict[str, Any]:
    """Seconds of the commands, and of the tokenizer alone on as many rows."""
    few, many = (_recipe(work, rows, 1, None) for rows in (LEAST_ROWS, most))
    few_seconds, few_bytes, _ = _ftcli("prepare", few)
    seconds, many_bytes, _ = _ftcli("prepare", many)
    few_again, many_again = (_ftcli("prepare", recipe)[0] for recipe in (few, many))
    return {
        "rows_a_second": (most - LEAST_ROWS) / (seconds - few_seconds),
        **_parts(many),
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
            "rendered_and_tokenised": lambda: list(
                encode_items(_items(sides, loaded.base), renderer)
            ),
            "of_the_tokenizer_alone": lambda: [alone(block) for block in blocks],
            "of_the_tokenizer_as_transformers_calls_it": lambda: [
                renderer.tokenizer(block)["input_ids"] for block in blocks
            ],
        }
        taken = [{name: _seconds(part) for name, part in parts.items()} for _ in range(TURNS)]
    return {
        f"rows_a_second_{name}": median(len(texts) / turn[name] for turn in taken) for name in parts
    }


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
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, int] = {}
    for _ in range(turns):
        for name, recipe in ways.items():
            _, peaks[name], result = _ftcli("train", recipe, "--fresh")
            speeds[name].append(float(result["tokens_per_second"]))
            print(f"{name}: {speeds[name][-1]:,.0f} tokens/s", file=sys.stderr, flush=True)
    first = speeds["few rows, 1 epoch"]
    return {
        name: {
            "tokens_a_second": median(found),
            "by_few_rows": median(a / b for a, b in zip(found, first, strict=True)),
            "peak_bytes": peaks[name],
        }
        for name, found in speeds.items()
    }


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(str(error)) from error
