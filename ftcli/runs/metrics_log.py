"""metrics.jsonl: a line for each step's loss and each validation, in the order of the steps.

The seconds of a step are in speed.jsonl: they differ in each run, and metrics.jsonl of a resumed
run equals that of an uninterrupted one.
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

    A checkpoint has a copy, with which a resumed run begins: without the lines of steps that are
    done again, and without a line cut by a kill.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: list[Record] = []

    def begin(self, kept: Path | None) -> None:
        """Start with a checkpoint's copy, or with no lines."""
        text = kept.read_text(encoding="utf-8") if kept is not None else ""
        self._lines = [json.loads(line) for line in text.splitlines()]
        write_text(self._file, text)
        if kept is None:
            self._file.with_name(SPEED).unlink(missing_ok=True)

    def add(self, record: Record) -> None:
        self._lines.append(record)
        append_json(self._file, record)

    def add_time(self, step: int, tokens: int, seconds: float) -> None:
        """Record the time of a step; if it is done again, its last line counts."""
        record = {"step": step, "tokens": tokens, "seconds": round(seconds, 4)}
        append_json(self._file.with_name(SPEED), record)

    def text(self) -> str:
        """All lines, as in the file."""
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines)

    def train_loss(self) -> float | None:
        """Mean over the last tenth of the steps, as one step is noise; None without a step."""
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
        """How many validations there were since the best one; the one before step 1 is left out."""
        losses = [loss for step, loss in self.eval_losses() if step]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0
