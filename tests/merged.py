"""A folder with a base and finished runs to merge, and what a merge leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ftcli.runs.atomic import sha256_file
from tests.conftest import pair

Merge = Callable[..., dict[str, Any]]


def recipe_of(home: Path, mode: str, *, test: int = 6, **training: Any) -> Path:
    """A recipe in `home`, with the rows that it names."""
    rows = "".join(json.dumps(pair(number)) + "\n" for number in range(48))
    (home / "rows.jsonl").write_text(rows)
    # 16 bits would decide between answers that are as likely.
    exact = {"precision": "fp32"}
    recipe = {
        "name": mode,
        "model": {"id": "base"},
        "method": {"mode": mode, "rank": 16},
        "data": {"train": "rows.jsonl", "validation": 4, "test": test},
        "training": {"max_steps": 30, "batch_size": 8, "learning_rate": 5e-3} | exact | training,
        "generation": {"max_new_tokens": 4},
    }
    path = home / f"{mode}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


def left_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
