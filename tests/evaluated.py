"""Evaluations in a run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def unevaluated(run_folder: Path) -> Path:
    """The run, as if nothing had been evaluated."""
    shutil.rmtree(run_folder / "eval", ignore_errors=True)
    return run_folder


def rows_of(folder: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of an evaluation, with its answers."""
    text = (folder / "eval" / report["answers"]).read_text()
    return [json.loads(line) for line in text.splitlines()]


def row_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    """A row of the table, or of general ability."""
    (row,) = [row for row in found["scores"] + found["forgetting"] if row["name"] == name]
    return dict(row)
