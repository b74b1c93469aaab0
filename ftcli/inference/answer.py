"""One generated answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """A generated text; `stopped` when the model ended it itself within the limit."""

    text: str
    tokens: int
    stopped: bool
