"""Memory of a training step, by arithmetic: (shape, choices) → itemised bytes."""

from ftcli.memory.choices import Choices, Stack
from ftcli.memory.estimate import Estimate, TextbookFigure, card_fits, estimate, textbook
from ftcli.memory.head_bytes import LOSS_CHUNK_POSITIONS

__all__ = [
    "LOSS_CHUNK_POSITIONS",
    "Choices",
    "Estimate",
    "Stack",
    "TextbookFigure",
    "card_fits",
    "estimate",
    "textbook",
]
