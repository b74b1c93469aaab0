"""What the command line asks of an evaluation, and by what the same question is known again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.config.evaluation import file_names
from ftcli.config.grounding import Grounding
from ftcli.data.prepared import Split
from ftcli.evaluation.scorers.code import code_digest
from ftcli.evaluation.work import VERSION
from ftcli.memory.shapes import model_source
from ftcli.models.base_files import base_fingerprint
from ftcli.runs.atomic import sha256_file, short_digest
from ftcli.training.opening import OpenRun

# Enough to show a format, and few enough for a context of 2,048 tokens.
SHOTS = 5


@dataclass(frozen=True)
class Asked:
    """Which rows, which models, and what else is measured."""

    data: Path | None = None
    """Rows instead of the held-out ones."""
    limit: int | None = None
    """The first so many rows only."""
    with_base: bool = True
    prompted: Path | None = None
    """An instruction: the base is asked with it and with `shots` training rows before each row."""
    shots: int = SHOTS
    scores: Path | None = None
    """A Python file of the user's, whose functions are scores."""
    forgetting: bool = True
    general_text: Path | None = None
    """Text instead of the built-in one."""
    general_instructions: Path | None = None
    """Instructions instead of the built-in ones."""
    rows_at_once: int | None = None
    """Rows answered in one batch; none: as many as fill the machine."""

    @property
    def files(self) -> dict[str, Path]:
        """By the flag that names each."""
        files = {
            "data": self.data,
            "prompted": self.prompted,
            "scores": self.scores,
            "general-text": self.general_text,
            "general-instructions": self.general_instructions,
        }
        return {flag: file for flag, file in files.items() if file is not None}

    def flags(self, opened: OpenRun) -> Iterator[str]:
        """What it asks beyond a plain `ftcli eval RUN`, without the folders of its files."""
        yield from (f"--{flag} {file.name}" for flag, file in self.files.items())
        if self.prompted is not None:
            yield f"--shots {self.shots}"
        if self.limit is not None:
            yield f"--limit {self.limit}"
        if not self.with_base:
            yield "--no-base"
        if not self.forgetting:
            yield "--no-forgetting"
        yield from (f"--set {override}" for override in opened.loaded.overrides)
        yield from (f"{section}: of the recipe" for section in opened.read_anew)


def key_of(opened: OpenRun, asked: Asked, split: Split) -> str:
    """16 hex digits of everything that the scores depend on."""
    recipe, base = opened.loaded.recipe, opened.loaded.base
    files = [*asked.files.values(), *(base / each.name for each in file_names(recipe.eval))]
    parts = {
        "weights": opened.run.read_manifest()["weights"],
        "data": opened.prepared.fingerprint,
        "split": split if asked.data is None else "file",
        "asked": {name: str(value) for name, value in vars(asked).items()},
        "files": [sha256_file(file) if file.is_file() else None for file in files],
        "detector": _detector_weights(recipe.eval.grounding, base),
        "generation": recipe.generation.model_dump(),
        "eval": recipe.eval.model_dump(mode="json"),
        "keys": recipe.data.model_dump(mode="json"),
        "model": recipe.model.model_dump(),
        "seed": recipe.training.seed,
        # Another version counts again, from the same answers.
        "code": [code_digest(), VERSION],
    }
    return short_digest(parts, 16)


def _detector_weights(wanted: Grounding | None, base: Path) -> str | None:
    """Of a folder; a hub id says by itself which they are."""
    if wanted is None or wanted.model is None:
        return None
    source = model_source(wanted.model, base)
    return base_fingerprint(source) if Path(source).is_dir() else None
