"""What a comparison keeps of each cell and of the base, on disk and in its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ftcli.disk import write_json
from ftcli.errors import FtcliError
from ftcli.metrics.likelihood import Forgetting, Scored, forgetting
from ftcli.stages.compare.cells import Cell

T = TypeVar("T")

# Goes up when the same cell would give other figures.
VERSION = 1
# Keys of a recipe that change no weight; what answers are drawn and scored by is in a cell's mark.
WEIGHTLESS_KEYS = {"name", "output", "training.report_to", "training.keep_checkpoints"}
CELL_FILE, BASE_FILE = "compare.json", "base.json"


@dataclass(frozen=True)
class Side:
    """What one model did with the held-out rows and with the general text."""

    scores: dict[str, Any]
    """As `ftcli eval` gives them."""
    rows: Scored
    passages: Scored


@dataclass(frozen=True)
class BaseRecord:
    """The base, measured once for all cells that hold it alike."""

    mark: str
    four_bit: bool
    side: Side


@dataclass(frozen=True)
class CellRecord:
    """A cell that was trained and evaluated."""

    mark: str
    name: str
    method: str
    four_bit: bool
    """Its base is held in 4 bits."""
    learning_rate: float
    run_dir: str
    held_out: Literal["test", "validation"]
    training: dict[str, Any]
    """As `ftcli train` reports it."""
    machine: str
    resumed: bool
    """Its seconds are those of its last sitting alone."""
    one_process: bool
    """Its peak of memory may be that of a cell before it."""
    tuned: Side

    @property
    def loss(self) -> float:
        return float(self.tuned.scores["loss"])

    @property
    def loss_interval(self) -> tuple[float, float]:
        low, high = self.tuned.scores["loss_interval"]
        return float(low), float(high)

    @property
    def validation_loss(self) -> float | None:
        loss: float | None = self.training["eval_loss"]
        return loss

    def forgetting(self, base: BaseRecord | None) -> Forgetting | None:
        return None if base is None else forgetting(base.side.passages, self.tuned.passages)


@dataclass(frozen=True)
class FailedCell:
    """A cell that has no figures, and why."""

    name: str
    method: str
    learning_rate: float | None
    code: str
    reason: str


def cell_mark(cell: Cell, data: str, text: str, limit: int | None) -> str:
    """16 hex digits of everything a cell's figures depend on, the machine left out."""
    return _digest({"recipe": _weighty(cell), "data": data, "text": text, "limit": limit})


def base_mark(cell: Cell, data: str, text: str, limit: int | None) -> str:
    """The same for the base: nothing of the method or of the training."""
    recipe = _weighty(cell)
    parts = {key: recipe[key] for key in ("model", "data", "generation", "eval")}
    parts["precision"] = recipe["training"]["precision"]
    return _digest({"recipe": parts, "data": data, "text": text, "limit": limit})


def speed_mark(cell: Cell, data: str) -> str:
    """The same for the time of a step: nothing of rates and budgets."""
    recipe = _weighty(cell)
    training = recipe["training"].items()
    left_out = ("learning_rate", "max_steps", "epochs")
    recipe["training"] = {key: value for key, value in training if key not in left_out}
    return _digest({"recipe": recipe, "data": data})


def _weighty(cell: Cell) -> dict[str, Any]:
    recipe = cell.recipe.model_dump(mode="json", exclude={"name", "output"})
    for key in WEIGHTLESS_KEYS:
        section, _, name = key.partition(".")
        if name:
            del recipe[section][name]
    return recipe


def _digest(parts: Mapping[str, Any]) -> str:
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_record(record: CellRecord | BaseRecord, file: Path) -> None:
    write_json(file, asdict(record))


def read_cell(cell: Cell, mark: str) -> CellRecord | None:
    """The figures of a finished cell, if they are those of this mark."""
    record = _read(cell.run.path / CELL_FILE, CellRecord)
    return record if record is not None and record.mark == mark else None


def read_base(folder: Path, mark: str, *, four_bit: bool) -> BaseRecord | None:
    """The base's figures, if they are of this mark; a 4-bit base only where all hold it so."""
    record = _read(folder / BASE_FILE, BaseRecord)
    if record is None or record.mark != mark or (record.four_bit and not four_bit):
        return None
    return record


def _read(file: Path, kind: type[T]) -> T | None:
    if not file.is_file():
        return None
    try:
        return parsed(json.loads(file.read_text(encoding="utf-8")), kind)
    except ValueError as error:  # pydantic's errors and json's are ValueErrors
        raise FtcliError(
            "run_broken",
            "another version of ftcli wrote it; delete it, and it is measured again",
            file=str(file),
        ) from error


def parsed(plain: object, kind: type[T]) -> T:
    """Plain values → a record; raises ValueError."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_python(plain)
