"""Paths and commands as a person would type them where they stand."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path


def shown_path(path: Path) -> str:
    """Relative to where the user stands when it lies below, else whole."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def shown_source(source: str) -> str:
    """The same of an absolute path; a hub id, a flag or another word stays as it is."""
    return shown_path(Path(source)) if os.path.isabs(source) else source


def command(*words: str | Path) -> str:
    """A whole command line of ftcli, to be pasted into the user's shell."""
    typed = (shown_path(word) if isinstance(word, Path) else word for word in words)
    return shlex.join(("ftcli", *typed))


def set_flags(overrides: Iterable[str]) -> Iterable[str]:
    """The `--set` flags that were given."""
    return (word for override in overrides for word in ("--set", override))
