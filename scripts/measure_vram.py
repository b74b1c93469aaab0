"""Measure a grid of trainings on this machine's GPU, for the project's own table.

    python -m scripts.measure_vram --grid small|full [--dry-run]

Models have random weights: nothing is downloaded. Points that the table already has for this GPU
and these software versions are skipped, so the command can be repeated;
scripts/vram_error.py scores the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from ftcli.memory import Estimate
from ftcli.memory.hardware import Card, find_card
from ftcli.shell import GIB, gib
from scripts.measured_runs import DATA, TABLE, Row, read_rows
from scripts.vram_points import (
    GRIDS,
    Point,
    card_named,
    columns_of,
    config_of,
    estimate_of,
    points,
    recipe_of,
    rows_text,
    table_rows,
)

OWN_TABLE = DATA / "own_runs.csv"
ROOT = Path(__file__).parents[1]
POINT_SECONDS = 600
# Room for the longest sequence of the grid; it changes no memory, as positions are rotated.
POSITIONS = 32_768
CONTROL = ("<|end|>", "<|pad|>")


def main() -> int:
    arguments = _arguments()
    if arguments.dry_run:
        print("\n".join(_shown(points(arguments.grid), find_card(arguments.gpu))))
        return 0
    if (gpu := _gpu_name()) is None or (card := card_named(gpu)) is None:
        found = f"{gpu} is not in ftcli/memory/hardware.py" if gpu else "torch finds no CUDA GPU"
        print(f"nothing is measured: {found} (--dry-run shows the points)", file=sys.stderr)
        return 1
    ends = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for point in _due(points(arguments.grid), card, arguments.table):
            if time.monotonic() > ends:
                print("out of time: repeat the command to continue", file=sys.stderr)
                break
            _measure(point, card, arguments.table, Path(work))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", choices=list(GRIDS), default="small")
    parser.add_argument("--dry-run", action="store_true", help="show points and estimates")
    parser.add_argument("--gpu", default="H100", help="GPU of --dry-run (default: H100)")
    parser.add_argument("--table", type=Path, default=OWN_TABLE)
    parser.add_argument("--work", type=Path, help="where models are made: up to 25 GB")
    parser.add_argument("--minutes", type=float, default=600, help="start no point after them")
    return parser.parse_args()


def _shown(grid: Iterable[Point], card: Card) -> Iterator[str]:
    """Points with their estimates, and the number of those that would be measured."""
    yield f"{'point':<55} allocated  reserved  nvidia-smi  interval"
    count = total = 0
    for point in grid:
        found = estimate_of(point, card)
        measured = _may_fit(found, card)
        total, count = total + 1, count + measured
        yield (
            f"{point!s:<55} {gib(found.peak_bytes):>9} {gib(found.reserved_bytes):>9} "
            f"{gib(found.device_bytes):>11}  {gib(found.low_bytes)} to "
            f"{gib(found.high_bytes)}{'' if measured else ', passed over'}"
        )
    yield f"{count} of {total} points may fit {card.name}"


def _may_fit(found: Estimate, card: Card) -> bool:
    return found.low_bytes <= card.usable_bytes


def _gpu_name() -> str | None:
    """Name of the first GPU by nvidia-smi; torch would open a CUDA context here."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # torch's first is nvidia-smi's
    import torch

    if not torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    return names.splitlines()[0].strip()


def _due(grid: Iterable[Point], card: Card, table: Path) -> Iterator[Point]:
    """Points that may fit and are not in the table."""
    for point in grid:
        if not _may_fit(estimate_of(point, card), card):
            print(f"{point}: passed over, its least is above the card", file=sys.stderr)
        elif not _has(table, point, card):
            yield point


def _has(table: Path, point: Point, card: Card) -> bool:
    wanted = columns_of(point, card.model).items()
    rows = read_rows(table) if table.is_file() else []
    return any(wanted <= row.items() for row in rows)


def _measure(point: Point, card: Card, table: Path, work: Path) -> None:
    """One point in its own process; a failed point is reported and not in the table."""
    model = work / point.model
    if not model.is_dir():
        for earlier in work.glob("*"):  # the grid goes through one model after another
            shutil.rmtree(earlier)
        _make_apart(config_of(point.model), model)
    found = run_point(point, model, work / "point")
    if isinstance(found, str):
        print(f"{point}: {found}", file=sys.stderr)
        return
    append_rows(table, table_rows(point, found, card.model))
    estimated = estimate_of(point, card).peak_bytes
    measured = found["allocated_bytes"]
    print(
        f"{point}: {measured / GIB:.3f} GiB allocated, estimate {estimated / measured - 1:+.1%}",
        file=sys.stderr,
        flush=True,
    )


def write_point(point: Point, model: Path, folder: Path) -> Path:
    """The point's rows and recipe in a fresh folder; returns the recipe."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows, recipe = folder / "rows.jsonl", folder / "point.yaml"
    rows.write_text(rows_text(point), encoding="utf-8")
    recipe.write_text(yaml.safe_dump(recipe_of(point, model, rows)), encoding="utf-8")
    return recipe


def run_point(point: Point, model: Path, folder: Path) -> dict[str, int] | str:
    """The child's measurement, or the reason for none."""
    command = [
        sys.executable,
        "-m",
        "scripts.measure_point",
        str(write_point(point, model, folder)),
    ]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=POINT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"not done after {POINT_SECONDS} s"
    if done.returncode == 0:
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return found
    if "OutOfMemoryError" in done.stderr:
        return "out of memory"
    last = done.stderr.strip().splitlines()[-1:]
    return f"failed with exit code {done.returncode}: {' '.join(last)}"


def _make_apart(config: dict[str, Any], folder: Path) -> None:
    """In a process that ends: its CUDA context would take GPU memory while points are measured."""
    maker = get_context("spawn").Process(target=make_model, args=(config, folder, "cuda"))
    maker.start()
    maker.join()
    if maker.exitcode != 0:
        raise SystemExit(f"{folder.name} could not be made (exit code {maker.exitcode})")


def make_model(config: dict[str, Any], folder: Path, device: str) -> None:
    """A model of this configuration with random weights, and a tokenizer of single bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config["model_type"]
    sizes = {key: value for key, value in config.items() if key != "model_type"}
    full = AutoConfig.for_model(kind, **sizes, max_position_embeddings=POSITIONS)
    full.eos_token_id, full.pad_token_id, full.bos_token_id = 0, 1, None
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(full, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=CONTROL[0], pad_token=CONTROL[1]
    )


def append_rows(table: Path, rows: Iterable[Row]) -> None:
    """Add rows with the next row_ids; the columns are those of docs/data/measured_runs.csv."""
    columns = list(read_rows(TABLE)[0])
    earlier = read_rows(table) if table.is_file() else []
    number = max((int(row["row_id"].removeprefix("own-")) for row in earlier), default=0)
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if not earlier:
            writer.writeheader()
        for row in rows:
            number += 1
            writer.writerow({"row_id": f"own-{number}", **row})


if __name__ == "__main__":
    sys.exit(main())
