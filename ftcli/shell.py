"""Paths, commands and sizes as the user types and reads them in the shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

GIB = 2**30


def shown_path(path: Path) -> str:
    """Relative to the working directory if it is inside it, else absolute."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def shown_source(source: str) -> str:
    """`shown_path` of an absolute path; a hub id, a flag or another word stays as it is."""
    return shown_path(Path(source)) if os.path.isabs(source) else source


def command(*words: str | Path) -> str:
    """A command line of ftcli, quoted for the user's shell."""
    typed = (shown_path(word) if isinstance(word, Path) else word for word in words)
    return shlex.join(("ftcli", *typed))


def set_flags(overrides: Iterable[str]) -> Iterable[str]:
    """Each override after its `--set`."""
    return (word for override in overrides for word in ("--set", override))


def gib(size_bytes: float) -> str:
    """`6.4 GiB`, as nvidia-smi counts."""
    return f"{size_bytes / GIB:.1f} GiB"


def shown_size(size_bytes: float) -> str:
    """`39 MiB`; KiB below one, GiB from 1,024 on."""
    if size_bytes < 2**20:
        return f"{size_bytes / 2**10:.0f} KiB"
    return gib(size_bytes) if size_bytes >= GIB else f"{size_bytes / 2**20:.0f} MiB"
