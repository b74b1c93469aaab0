"""By which code something was counted: scores are told again only while it is the same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from ftcli import __version__

COUNTS = (".py", ".txt", ".json", ".jsonl")


@cache
def code_digest() -> str:
    """sha256 of what counts, with its word lists and the built-in sets, and of the version."""
    found = hashlib.sha256(__version__.encode())
    for file in sorted(Path(__file__).parent.rglob("*")):
        if file.suffix in COUNTS:
            found.update(file.read_bytes())
    return found.hexdigest()
