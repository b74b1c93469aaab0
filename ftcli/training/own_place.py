"""A run folder is a place of its own: not the base's, not inside it, not around it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftcli.config.loader import Loaded
from ftcli.errors import FtcliError
from ftcli.memory.shapes import model_source
from ftcli.runs.folder import RunFolder
from ftcli.training.opening import OpenRun


def require_own_place(run: RunFolder, loaded: Loaded, parent: OpenRun | None = None) -> None:
    """Raise FtcliError (`output_base`) where a run would write into what it starts from.

    Before anything is written, the lock too: a run that is trained whole puts `model/` in the place
    of whatever has that name. Raises ModelError where a base in a folder is missing.
    """
    bases = [Path(model_source(loaded.recipe.model.id, loaded.base))]
    if parent is not None:
        bases.append(parent.run.trained())
    folder = run.path.resolve()
    for base in (path.resolve() for path in bases if path.is_dir()):
        if folder == base:
            how = "is the base itself"
        elif folder.is_relative_to(base):
            how = f"lies in the base ({base})"
        elif base.is_relative_to(folder):
            how = f"holds the base ({base})"
        else:
            continue
        raise FtcliError(
            "output_base",
            f"{run.path} {how}, which a run never writes to; name a folder beside it",
        )


@contextmanager
def own_folder(output: Path, prefix: str) -> Iterator[Path]:
    """A folder beside the run, on the same disk, that is gone when the block ends."""
    folder = output.with_name(f"{prefix}{output.name}")
    new = [parent for parent in folder.parents if not parent.exists()]
    try:
        with RunFolder(folder).lock():
            _clear(folder)  # of a process that was killed
            try:
                yield folder
            finally:
                _clear(folder)
    finally:
        for parent in new:  # the nearest first
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _clear(folder: Path) -> None:
    """Take everything away but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(".lock"):
            path.unlink()
