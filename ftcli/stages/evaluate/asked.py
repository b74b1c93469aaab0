"""What the command line asks of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Enough to show a format, and few enough for a context of 2,048 tokens.
SHOTS = 5


@dataclass(frozen=True)
class Asked:
    """Which rows, which models, and what else is looked at."""

    data: Path | None = None
    """Rows instead of the held-out ones."""
    limit: int | None = None
    """The first so many rows only."""
    with_base: bool = True
    prompted: Path | None = None
    """An instruction: the base is asked with it and with `shots` training rows before each row."""
    shots: int = SHOTS
    scores: Path | None = None
    """A Python file of the user's, whose functions are scores."""
    forgetting: bool = True
    general_text: Path | None = None
    """Text instead of the built-in one."""
    general_instructions: Path | None = None
    """Instructions instead of the built-in ones."""
    rows_at_once: int | None = None
    """Rows answered at once; none: as many as fill the machine."""
