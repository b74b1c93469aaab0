"""A text of many subjects, by which one sees what a training has made a model forget."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from ftcli.errors import DataError

OWN_TEXT = Path(__file__).with_name("general_text.txt")


@dataclass(frozen=True)
class GeneralText:
    """Passages in the order of their file, and a mark that changes with them."""

    name: str
    """The file's name, or `built-in`."""
    passages: tuple[str, ...]
    digest: str
    """16 hex digits of the passages."""


def general_text(file: Path | None) -> GeneralText:
    """The built-in text, or a plain text file whose blank lines part its passages.

    Lines that begin with `#` are not part of the text. Raises DataError.
    """
    passages = _passages(_read(file or OWN_TEXT))
    if not passages:
        raise DataError("data_empty", "holds no passage of text", file=str(file))
    digest = hashlib.sha256("\n\n".join(passages).encode()).hexdigest()[:16]
    return GeneralText(str(file) if file else "built-in", passages, digest)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError("data_missing", "no such file", file=str(file)) from error
    except UnicodeDecodeError as error:
        raise DataError(
            "data_encoding", "not UTF-8 text; save it as UTF-8", file=str(file)
        ) from error


def _passages(text: str) -> tuple[str, ...]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    parts = re.split(r"\n\s*\n", "\n".join(lines))
    return tuple(part.strip() for part in parts if part.strip())
