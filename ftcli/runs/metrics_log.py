"""metrics.jsonl: a line for each step's loss and each validation, in the order of the steps.

How long a step took stands in a file of its own, speed.jsonl: no two runs take the same time, and
all else of a run that was stopped and went on is what it would have been without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftcli.runs.atomic import append_json, write_text

Record = dict[str, Any]
SPEED = "speed.jsonl"


class Records:
    """The lines of one run, on disk and in memory.

    A checkpoint keeps a copy of its own. A run that goes on begins with that: lines of steps that
    are done again, and a line that a kill has cut, are gone.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: list[Record] = []

    def begin(self, kept: Path | None) -> None:
        """Take up the copy of a checkpoint, or begin with none."""
        text = kept.read_text(encoding="utf-8") if kept is not None else ""
        self._lines = [json.loads(line) for line in text.splitlines()]
        write_text(self._file, text)
        if kept is None:
            self._file.with_name(SPEED).unlink(missing_ok=True)

    def add(self, record: Record) -> None:
        self._lines.append(record)
        append_json(self._file, record)

    def add_time(self, step: int, tokens: int, seconds: float) -> None:
        """How long a step took; of a step that was done again the last line counts."""
        record = {"step": step, "tokens": tokens, "seconds": round(seconds, 4)}
        append_json(self._file.with_name(SPEED), record)

    def text(self) -> str:
        """All lines, as they stand in the file."""
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines)

    def train_loss(self) -> float | None:
        """Mean over the last tenth of the steps: one alone is noise; none: no step."""
        losses = [line["loss"] for line in self._lines if "loss" in line]
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail) if tail else None

    def eval_losses(self) -> list[tuple[int, float]]:
        """Step and loss of each validation so far."""
        return [(line["step"], line["eval_loss"]) for line in self._lines if "eval_loss" in line]

    def has_eval(self, step: int) -> bool:
        """Whether the rows were validated after this step."""
        return any(found == step for found, _ in self.eval_losses())

    def validations_without_gain(self) -> int:
        """How many validations in a row, up to the last, have not beaten the best before them.

        The one before the first step is no result of the training.
        """
        losses = [loss for step, loss in self.eval_losses() if step]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0
