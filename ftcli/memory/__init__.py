"""Memory of a training step, by arithmetic: (shape, choices) → itemised bytes."""

from ftcli.memory.choices import Choices, Stack
from ftcli.memory.estimate import Estimate, card_fits, estimate
from ftcli.memory.head import LOSS_CHUNK_POSITIONS
from ftcli.memory.textbook import TextbookFigure, textbook

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
