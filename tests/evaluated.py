"""A finished run of the tiny model, to be evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ftcli.cli import run
from tests.conftest import save_recipe, save_rows


def finished_run(folder: Path, tiny_model: Path, max_steps: int) -> Path:
    """Trained so many steps, in fp32."""
    save_rows(folder)
    training = {"batch_size": 4, "learning_rate": "1e-2", "precision": "fp32"}
    recipe = save_recipe(folder, tiny_model, training=training | {"max_steps": max_steps})
    assert run(["train", str(recipe)]) == 0
    return folder / "runs" / "tiny"


def unevaluated(run_folder: Path) -> Path:
    """The run, as if nothing had been evaluated."""
    shutil.rmtree(run_folder / "eval", ignore_errors=True)
    return run_folder


def rows_of(folder: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of an evaluation, with its answers."""
    text = (folder / "eval" / report["answers"]).read_text()
    return [json.loads(line) for line in text.splitlines()]
