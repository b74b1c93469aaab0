"""Cells of a comparison made by hand, for tests that judge and show them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ftcli.metrics.intervals import ratio_interval
from ftcli.metrics.likelihood import Scored
from ftcli.stages.compare.record import BaseRecord, CellRecord, FailedCell, Side
from ftcli.stages.compare.result import Budget, Comparison
from ftcli.stages.compare.verdict import judge

TOKENS = tuple(20 + row % 5 for row in range(30))


def scored(loss: float, wobble: float = 0.0, rows: int = 30) -> Scored:
    """Rows of very different losses whose mean is `loss`, every other one off by `wobble`."""
    tokens = TOKENS[:rows]
    losses = [
        (loss + math.sin(row) + wobble * (-1) ** row) * count for row, count in enumerate(tokens)
    ]
    return Scored(tuple(losses), tokens)


def side(rows: Scored, perplexity: float) -> Side:
    scores: dict[str, Any] = {"stop_rate": 1.0, "rouge_l": 0.5, "format_rate": 0.9}
    scores |= {"loss": rows.loss, "loss_interval": list(ratio_interval(rows.losses, rows.tokens))}
    passages = Scored((math.log(perplexity) * 100, math.log(perplexity) * 50), (100, 50))
    return Side(scores, rows, passages)


def cell(method: str, rows: Scored, **changes: Any) -> CellRecord:
    rate = changes.pop("rate", 1e-3)
    training = {
        "steps": 60,
        "train_loss": 1.0,
        "eval_loss": 1.0,
        "trained_parameters": 1_000_000,
        "total_parameters": 100_000_000,
        "peak_memory_bytes": 2_000_000_000,
        "tokens_per_second": 800.0,
        "saved_bytes": 20_000_000,
        "training_seconds": 50.0,
        "seconds": 60.0,
    }
    return CellRecord(
        mark="m",
        name=f"{method}-{rate:g}",
        method=method,
        four_bit=method == "qlora",
        learning_rate=rate,
        run_dir=method,
        held_out="test",
        training=training | changes,
        machine="a card",
        resumed=False,
        one_process=False,
        tuned=side(rows, 21.0),
    )


BASE = BaseRecord("b", four_bit=False, side=side(scored(3.0), 20.0))


def comparison(folder: Path, *cells: CellRecord | FailedCell, **changes: Any) -> Comparison:
    finished = [cell for cell in cells if isinstance(cell, CellRecord)]
    values: dict[str, Any] = {
        "folder": folder,
        "recipe": folder / "shop.yaml",
        "model": "small",
        "budget": Budget("steps", 60),
        "seed": 42,
        "general_text": "built-in",
        "base": BASE,
        "cells": cells,
        "kept": (),
        "verdict": judge(finished, BASE),
    }
    return Comparison(**values | changes)
