"""What a command leaves below `runs`."""

from __future__ import annotations

from pathlib import Path

# Files of the prepared data.
DATA = {"prepared.json", "train.arrow", "validation.arrow", "test.arrow"}


def leftovers(folder: Path) -> set[str]:
    """Files below `runs`, without their folders; locks are the run folder's own."""
    files = (path for path in folder.rglob("runs/**/*") if path.is_file())
    return {path.name for path in files if path.name != ".lock"}
