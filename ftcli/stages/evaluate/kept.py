"""What one model has done with a set of rows so far, on disk: a stopped evaluation goes on.

A line for each batch. Its name is a digest of the weights, the rows and the settings, so that
answers are used again by every evaluation that would draw the same ones: a changed `eval.format`
is scored without a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftcli.disk import append_json, write_text
from ftcli.metrics.answer import Answer
from ftcli.metrics.likelihood import Scored


class Kept:
    """Losses and answers by row number; the file is read once, and added to batch by batch."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.losses: dict[int, tuple[float, int]] = {}
        self.answers: dict[int, Answer] = {}
        self.seconds = 0.0
        """What the answers took."""
        for line in _whole_lines(file):
            self._take(line)

    def add_losses(self, rows: Sequence[int], scored: Sequence[tuple[float, int]]) -> None:
        """Summed loss (nats) and labelled tokens of a batch's rows."""
        self._add({"losses": [[row, *pair] for row, pair in zip(rows, scored, strict=True)]})

    def add_answers(self, rows: Sequence[int], answers: Sequence[Answer], seconds: float) -> None:
        """Answers of a batch's rows, and what they took."""
        pairs = zip(rows, answers, strict=True)
        lines = [[row, answer.text, answer.tokens, answer.stopped] for row, answer in pairs]
        self._add({"answers": lines, "seconds": seconds})

    def scored(self, rows: int) -> Scored:
        """Losses in the rows' order, once all of them are there."""
        pairs = [self.losses[row] for row in range(rows)]
        return Scored(tuple(loss for loss, _ in pairs), tuple(tokens for _, tokens in pairs))

    def texts(self, rows: int) -> list[Answer]:
        """Answers in the rows' order, once all of them are there."""
        return [self.answers[row] for row in range(rows)]

    def _add(self, line: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        append_json(self.file, line)
        self._take(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        for row, loss, tokens in line.get("losses", ()):
            self.losses[row] = (loss, tokens)
        for row, text, tokens, stopped in line.get("answers", ()):
            self.answers[row] = Answer(text, tokens, stopped)
        self.seconds += line.get("seconds", 0.0)


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Lines up to the first that is not whole, which a kill has cut: the file ends before it."""
    if not file.is_file():
        return
    # Not splitlines: U+2028 and others in an answer would end a line there.
    *lines, rest = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            lines, rest = lines[:number], line
            break
        yield found
    if rest:
        write_text(file, "".join(f"{line}\n" for line in lines))
