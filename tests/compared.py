"""Comparisons made by hand, and `ftcli compare` within the process of a test."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.evaluation.compare import cells
from ftcli.evaluation.compare.comparison import Decision, decide
from ftcli.evaluation.statistics import Counts
from ftcli.runs.results import ComparedBase, ComparedCell, CompareResult, FailedCell, Score

Made = tuple[ComparedCell, Counts]


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of a comparison start no process: torch is loaded once."""

    def run_here(words: Sequence[str]) -> tuple[int, str]:
        out = io.StringIO()
        with redirect_stdout(out):
            code = run(words)
        return code, out.getvalue()

    monkeypatch.setattr(cells, "run", run_here)


def losses(loss: float, wobble: float = 0.0, rows: int = 30) -> Counts:
    """Rows of very different losses whose mean is near `loss`, every other one off by `wobble`."""
    tokens = [20 + row % 5 for row in range(rows)]
    return Counts(
        tuple((loss + math.sin(r) + wobble * (-1) ** r) * n for r, n in enumerate(tokens)),
        tuple(float(n) for n in tokens),
    )


def scores(of: Counts, perplexity: float) -> dict[str, Score]:
    shares = {"format_rate": 0.9, "stop_rate": 1.0}
    return {
        "loss": Score(value=of.value, interval=of.interval(), n=of.n),
        "general_text": Score(value=math.log(perplexity), interval=(1.0, 4.0), n=25),
        **{name: Score(value=v, interval=(0.8, 1.0), n=of.n) for name, v in shares.items()},
    }


def made(method: str, of: Counts, **changes: Any) -> Made:
    rate = changes.pop("learning_rate", 1e-3)
    values = {
        "name": f"{method}-{rate:g}",
        "method": method,
        "learning_rate": rate,
        "four_bit": method == "qlora",
        "run_dir": method,
        "evaluation": "key",
        "validation_loss": 1.0,
        "scores": scores(of, 21.0),
        "steps": 60,
        "trainable_parameters": 1_000_000,
        "total_parameters": 100_000_000,
        "peak_memory_bytes": 2_000_000_000,
        "tokens_per_second": 800.0,
        "saved_bytes": 20_000_000,
        "seconds": 60.0,
        "resumed": False,
    }
    return ComparedCell.model_validate(values | changes), of


def decided(*cells: Made, base: Counts | None = None) -> Decision:
    return decide(
        [cell for cell, _ in cells],
        {cell.name: of for cell, of in cells},
        base or losses(3.0, rows=cells[0][1].n),
        seed=42,
    )


def comparison(
    folder: Path, *cells: Made, failed: Sequence[FailedCell] = (), **changes: Any
) -> CompareResult:
    decision = decided(*cells)
    values = {
        "run_dir": str(folder),
        "recipe": str(folder / "shop.yaml"),
        "model": "small",
        "steps": 60,
        "seed": 42,
        "data": "test",
        "rows": cells[0][1].n,
        "general_text": "built-in",
        "base": ComparedBase(four_bit=False, scores=scores(losses(3.0), 20.0)),
        "cells": (*failed, *decision.cells),
        "take": decision.take,
        "among": decision.among,
        "verdict": decision.text,
    }
    return CompareResult.model_validate(values | changes)
