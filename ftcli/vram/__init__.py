"""Memory of a training step, by arithmetic: (shape, choices) → itemised bytes."""

from ftcli.vram.choices import Choices, Stack
from ftcli.vram.estimate import Estimate, card_fits, estimate
from ftcli.vram.head import LOSS_CHUNK_POSITIONS
from ftcli.vram.textbook import TextbookFigure, textbook

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
