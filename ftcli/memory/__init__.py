"""Memory of a training step, by arithmetic: (shape, choices) → itemised bytes."""

from ftcli.memory.activations.head_bytes import LOSS_CHUNK_POSITIONS
from ftcli.memory.choices import Choices, Stack
from ftcli.memory.estimate import Estimate, TextbookFigure, card_fits, estimate, textbook

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
