"""The figures that textbooks give for full fine-tuning, and what each of them counts."""

from __future__ import annotations

from typing import NamedTuple

from ftcli.memory.shapes import Shape


class TextbookFigure(NamedTuple):
    """Memory of weights, gradients and AdamW's two states, without any activation."""

    label: str
    total_bytes: int
    why: str


def textbook(shape: Shape) -> list[TextbookFigure]:
    """Full fine-tuning in three precisions, by bytes a parameter."""
    return [
        TextbookFigure(
            "fp32",
            16 * shape.parameters,
            "4 weights + 4 gradients + 8 AdamW states a parameter (112 GB for 7 billion)",
        ),
        TextbookFigure(
            "bf16 mixed",
            16 * shape.parameters,
            "as fp32, for the fp32 weights are the master copy; 2 more for autocast's bf16 copy of "
            "the weights in the forward pass, when the 4 of the gradients are not there yet",
        ),
        TextbookFigure(
            "pure bf16",
            8 * shape.parameters,
            "2 weights + 2 gradients + 4 AdamW states a parameter: no master copy, small updates "
            "are rounded away",
        ),
    ]
