"""By what an evaluation is known again: the same question is answered once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ftcli.disk import sha256_file
from ftcli.metrics.code import code_digest
from ftcli.prepared import Split
from ftcli.stages.evaluate.asked import Asked
from ftcli.stages.evaluate.work import VERSION
from ftcli.stages.opening import OpenRun


def key_of(opened: OpenRun, asked: Asked, split: Split, judged_by: Sequence[Path]) -> str:
    """16 hex digits of everything the scores depend on; `judged_by`: files that judges read."""
    recipe = opened.loaded.recipe
    files = [asked.data, asked.prompted, asked.scores, asked.general_text]
    files += [asked.general_instructions, *judged_by]
    parts = {
        "weights": opened.run.read_manifest()["weights"],
        "data": opened.prepared.fingerprint,
        "split": split if asked.data is None else "file",
        "asked": {name: str(value) for name, value in vars(asked).items()},
        "files": [_digest(file) for file in files],
        "generation": recipe.generation.model_dump(),
        "eval": recipe.eval.model_dump(mode="json"),
        "keys": recipe.data.model_dump(mode="json"),
        "model": recipe.model.model_dump(),
        "seed": recipe.training.seed,
        # Another version counts anew, from the same answers.
        "code": [code_digest(), VERSION],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _digest(file: Path | None) -> str | None:
    return sha256_file(file) if file is not None and file.is_file() else None
