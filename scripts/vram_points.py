"""What scripts/measure_vram.py measures: points of a grid, their estimates, recipes and table rows.

adapter, prefix and prompt tuning are not in the grid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ftcli import __version__
from ftcli.errors import FtcliError
from ftcli.memory import Choices, Estimate, estimate
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import Mode, Precision
from ftcli.memory.hardware import KNOWN_CARDS, Card
from ftcli.models.architectures.find import find_architecture
from ftcli.shell import GIB

STEPS = 3  # AdamW's states appear in the first step; the second is the first whole one
RANK = 16
LOSS = "chunked (ftcli)"


@dataclass(frozen=True)
class Family:
    """A way to train, with its values in the table's columns."""

    mode: Mode
    precision: Precision
    weights_column: str
    precision_column: str


FAMILIES = {
    "full pure-bf16": Family("full", "pure-bf16", "bf16", "pure bf16"),
    "full bf16": Family("full", "bf16", "fp32", "bf16 autocast"),
    "lora": Family("lora", "bf16", "bf16", "bf16 autocast"),
    "qlora": Family("qlora", "bf16", "nf4-dq", "bf16 autocast"),
}
MODELS = ("llama-3.2-1b", "qwen2.5-3b", "llama-3.1-8b")

# Tokens, rows and checkpointing. The small grid has each of them at both ends.
SMALL_GRID = ((512, 1, True), (1024, 4, False), (8192, 1, True))
FULL_GRID = tuple(
    (tokens, rows, checkpointing)
    for tokens in (512, 1024, 2048, 4096, 8192)
    for rows in (1, 4)
    for checkpointing in (False, True)
)
GRIDS = {"small": SMALL_GRID, "full": FULL_GRID}


@dataclass(frozen=True)
class Point:
    """One training to measure."""

    model: str
    family: str
    seq_len: int
    micro_batch: int
    checkpointing: bool

    def __str__(self) -> str:
        checkpointing = "" if self.checkpointing else "no "
        rows = f"{self.micro_batch} × {self.seq_len}"
        return f"{self.model:<13} {self.family:<14} {rows:>8}  {checkpointing}checkpointing"

    @property
    def method(self) -> Family:
        return FAMILIES[self.family]

    @property
    def choices(self) -> Choices:
        return Choices(
            mode=self.method.mode,
            precision=self.method.precision,
            rank=RANK,
            seq_len=self.seq_len,
            micro_batch=self.micro_batch,
            gradient_checkpointing=self.checkpointing,
        )


def points(grid: str) -> Iterator[Point]:
    """The grid, one model after another."""
    for model in MODELS:
        for family in FAMILIES:
            for tokens, rows, checkpointing in GRIDS[grid]:
                yield Point(model, family, tokens, rows, checkpointing)


def architecture_of_point(point: Point) -> Architecture:
    return find_architecture(point.model)


def estimate_of(point: Point, card: Card) -> Estimate:
    return estimate(architecture_of_point(point), point.choices, card.compute_capability)


def card_named(name: str) -> Card | None:
    """The known GPU of a name like `NVIDIA H100 80GB HBM3`: the longest matching model."""
    named = [card for card in KNOWN_CARDS if re.search(rf"\b{card.model}\b", name)]
    return max(named, key=lambda card: len(card.model), default=None)


def config_of(model: str) -> dict[str, Any]:
    """The part of the known model's config.json that gives its shape."""
    text = (Path(__file__).parents[1] / "ftcli/memory/known_models.json").read_text("utf-8")
    for known in json.loads(text)["models"]:
        if model in known["hub_ids"]:
            return dict(known["config"])
    raise FtcliError("model_unknown", f"{model} is no short name of known_models.json")


def recipe_of(point: Point, model: Path, rows: Path) -> dict[str, Any]:
    """A recipe that leaves nothing that memory depends on to the plan."""
    method: dict[str, Any] = {"mode": point.method.mode}
    if point.choices.has_lora:
        method |= {"rank": RANK, "target_modules": "all-linear"}
    return {
        "name": "point",
        "model": {"id": str(model), "attention": "sdpa"},
        "method": method,
        "data": {
            "train": str(rows),
            "format": "text",
            "validation": 0,
            "max_length": point.seq_len,
            "too_long": "truncate",
        },
        "training": {
            "max_steps": STEPS,
            "batch_size": point.micro_batch,
            "micro_batch_size": point.micro_batch,
            "gradient_checkpointing": point.checkpointing,
            "precision": point.method.precision,
            "optimizer": "adamw",
            "warmup_ratio": 0,
        },
    }


def rows_text(point: Point) -> str:
    """Rows longer than a row may be; each letter is a token of our tokenizer."""
    count = STEPS * point.micro_batch
    return "".join(
        json.dumps({"text": f"{number:06} {'x' * point.seq_len}"}) + "\n" for number in range(count)
    )


Measure = Literal["allocated", "reserved", "nvidia-smi"]
MEASURES: dict[Measure, tuple[str, str]] = {
    "allocated": ("allocated_bytes", "GiB; torch max_memory_allocated of the steps"),
    "reserved": ("reserved_bytes", "GiB; torch max_memory_reserved of the steps"),
    "nvidia-smi": ("nvidia_smi_bytes", "GiB; nvidia-smi after the last step minus before"),
}


def framework() -> str:
    """ftcli's libraries with their versions, as scripts/measured_runs.py reads them."""
    names = {"torch": "torch", "transformers": "transformers", "peft": "peft", "trl": "trl"}
    names |= {"bitsandbytes": "bnb"}
    parts = [f"{word} {version(name)}" for name, word in names.items()]
    return " / ".join([f"ftcli {__version__}", *parts])


def columns_of(point: Point, gpu: str) -> dict[str, str]:
    """The key of a point, in the columns of docs/data/measured_runs.csv."""
    lora = point.choices.has_lora
    return {
        "source": "scripts/measure_vram.py",
        "model": point.model,
        "params_b": f"{architecture_of_point(point).parameters / 1e9:.3f}",
        "method": point.method.mode,
        "weights_dtype": point.method.weights_column,
        "precision": point.method.precision_column,
        "optimizer": "adamw_torch",
        "opt_impl": "fused",
        "rank": str(RANK) if lora else "",
        "targets": "all-linear" if lora else "",
        "adapter_dtype": "fp32",
        "kbit_prep": "0",
        "lora_dropout": "0",
        "virtual_tokens": "",
        "micro_batch": str(point.micro_batch),
        "grad_accum": "1",
        "seq_len": str(point.seq_len),
        "packing_or_padded_to": "synthetic, exact length",
        "grad_checkpointing": "1" if point.checkpointing else "0",
        "attention": "sdpa",
        "loss": LOSS,
        "framework": framework(),
        "gpu": gpu,
        "quality": "A",
        "same_stack": "1",
    }


def table_rows(point: Point, measured: Mapping[str, int], gpu: str) -> Iterator[dict[str, str]]:
    """A row for each figure, without its row_id."""
    notes = (
        f"CUDA context {measured['context_bytes'] / GIB:.2f} GiB after one element; "
        f"{measured['retries']} allocation retries"
    )
    for measure, (name, unit) in MEASURES.items():
        yield {
            **columns_of(point, gpu),
            "trainable_params": str(measured["trainable_parameters"]),
            "measure": measure,
            "peak_gib": f"{measured[name] / GIB:.3f}",
            "unit_note": unit,
            "notes": notes,
        }
