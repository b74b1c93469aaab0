"""What the command line asks of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
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

    def flags(self, overrides: Sequence[str]) -> list[str]:
        """What it asks beyond a plain `ftcli eval RUN`, without the folders of its files."""
        files = {
            "data": self.data,
            "prompted": self.prompted,
            "scores": self.scores,
            "general-text": self.general_text,
            "general-instructions": self.general_instructions,
        }
        found = [f"--{name} {file.name}" for name, file in files.items() if file is not None]
        if self.prompted is not None:
            found.append(f"--shots {self.shots}")
        if self.limit is not None:
            found.append(f"--limit {self.limit}")
        found += [] if self.with_base else ["--no-base"]
        found += [] if self.forgetting else ["--no-forgetting"]
        return [*found, *(f"--set {each}" for each in overrides)]
