"""Rows for the statistics of a data set."""

from __future__ import annotations

from ftcli.data.example import Message, Origin
from ftcli.metrics.dataset.row import DataRow


def row(
    prompt: str, answer: str, line: int = 1, *, system: str | None = None, held_out: bool = False
) -> DataRow:
    """One question and its answer; a token is a word."""
    turns = [Message("user", prompt), Message("assistant", answer)]
    if system is not None:
        turns.insert(0, Message("system", system))
    words = (len(prompt.split()), len(answer.split()))
    return DataRow(Origin("rows.jsonl", line), tuple(turns), *words, held_out)
