"""What `ftcli compare` answers, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ftcli.console import shown_path
from ftcli.stages.compare.record import BaseRecord, CellRecord, FailedCell
from ftcli.stages.compare.verdict import Verdict, best_rates

# Of a training's report, as `ftcli train --json` names them.
OF_TRAINING = (
    "steps",
    "train_loss",
    "trained_parameters",
    "total_parameters",
    "peak_memory_bytes",
    "tokens_per_second",
    "saved_bytes",
    "training_seconds",
    "seconds",
)


@dataclass(frozen=True)
class Budget:
    """What every method was given: steps, seconds of training, or what the recipe says."""

    kind: Literal["steps", "seconds", "recipe"]
    value: float | None

    def in_words(self) -> str:
        match self.kind:
            case "steps":
                return f"{self.value:g} steps each"
            case "seconds":
                return f"steps for about {self.value:g} seconds of training each"
            case "recipe":
                return "the recipe's own length each"


@dataclass(frozen=True)
class Comparison:
    """Cells in the order asked for; figures, or the reason why there are none."""

    folder: Path
    recipe: Path
    model: str
    budget: Budget
    seed: int
    general_text: str
    base: BaseRecord | None
    cells: tuple[CellRecord | FailedCell, ...]
    kept: tuple[str, ...]
    """Names of the cells that an earlier comparison had finished."""
    verdict: Verdict

    @property
    def finished(self) -> list[CellRecord]:
        return [cell for cell in self.cells if isinstance(cell, CellRecord)]

    @property
    def best_names(self) -> set[str]:
        """Of each method the cell with the best validation loss."""
        return {cell.name for cell in best_rates(self.finished)}

    @property
    def has_grid(self) -> bool:
        """Whether some method was trained at several rates."""
        return len({cell.method for cell in self.cells}) < len(self.cells)

    @property
    def picture(self) -> Path:
        return self.folder / "compare.png"

    def notes(self) -> list[str]:
        """What a reader of the figures has to know."""
        first = self.finished[0]
        rows = len(first.tuned.rows.losses)
        notes = [
            f"{rows} held-out rows ({first.held_out}), {self.budget.in_words()}, seed {self.seed}; "
            f"forgetting: perplexity of a general text ({self.general_text})"
        ]
        if first.held_out == "validation":
            notes.append(
                "these rows chose the checkpoints; hold others out with data.test for a fair loss"
            )
        if rounded := self._rounded_too():
            notes.append(
                f"forgetting of {', '.join(rounded)} is against the base in 16 bits, and holds the "
                "rounding to 4 bits too"
            )
        if self.has_grid:
            notes.append("* the best rate of its method, by validation loss")
        if any(cell.resumed for cell in self.finished):
            notes.append("≥ stopped and resumed: the time of its last part alone")
        if any(cell.one_process for cell in self.finished):
            notes.append("≤ several cells in one process: the peak may be another's")
        if len(machines := {cell.machine for cell in self.finished}) > 1:
            notes.append(f"trained on several machines: {', '.join(sorted(machines))}")
        return notes

    def _rounded_too(self) -> list[str]:
        """Cells whose base was rounded to 4 bits before they were trained, beside one that was not.

        What they forgot is told of the base that is shown.
        """
        if self.base is None or self.base.four_bit:
            return []
        return [cell.name for cell in self.finished if cell.four_bit]

    def as_json(self) -> dict[str, Any]:
        """Names that scripts rely on."""
        first = self.finished[0]
        return {
            "folder": str(self.folder),
            "recipe": str(self.recipe),
            "model": self.model,
            "budget": asdict(self.budget),
            "seed": self.seed,
            "held_out": first.held_out,
            "rows": len(first.tuned.rows.losses),
            "general_text": self.general_text,
            "base": _base_json(self.base),
            "cells": [self._cell_json(cell) for cell in self.cells],
            "kept": list(self.kept),
            "verdict": asdict(self.verdict) | {"among": list(self.verdict.among)},
            "picture": str(self.picture),
        }

    def _cell_json(self, cell: CellRecord | FailedCell) -> dict[str, Any]:
        if isinstance(cell, FailedCell):
            return {"state": "failed", **asdict(cell)}
        found = cell.forgetting(self.base)
        return {
            "state": "finished",
            "name": cell.name,
            "method": cell.method,
            "learning_rate": cell.learning_rate,
            "best_rate": cell.name in self.best_names,
            "run_dir": cell.run_dir,
            "validation_loss": cell.validation_loss,
            "scores": cell.tuned.scores,
            "general_perplexity": cell.tuned.passages.perplexity,
            "forgetting": None if found is None else _plain(asdict(found)),
            **{name: cell.training[name] for name in OF_TRAINING},
            "machine": cell.machine,
            "resumed": cell.resumed,
            "one_process": cell.one_process,
        }

    def headline(self) -> str:
        """A model's folder by its name alone: what it lies in says nothing about it."""
        name = Path(self.model).name if self.model.startswith((".", "/", "~")) else self.model
        return f"{name}, tuned on the data of {shown_path(self.recipe)}"


def _base_json(base: BaseRecord | None) -> dict[str, Any] | None:
    if base is None:
        return None
    return {
        "four_bit": base.four_bit,
        "scores": base.side.scores,
        "general_perplexity": base.side.passages.perplexity,
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where we have tuples."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
