"""A text of many subjects, by which one sees what a training has made a model forget."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from ftcli.config.recipe import Data
from ftcli.data.example import Example
from ftcli.data.reading import read_examples
from ftcli.data.source import data_suffix
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
    """The built-in text, or a file's: rows with a `text`, or passages between blank lines.

    In a plain text, lines that begin with `#` are not part of it. Raises DataError.
    """
    if file is not None and data_suffix(file.name):
        passages = _texts(file)
    else:
        passages = _passages(read_text(file or OWN_TEXT))
    if not passages:
        raise DataError("data_empty", "holds no passage of text", file=str(file))
    digest = hashlib.sha256("\n\n".join(passages).encode()).hexdigest()[:16]
    return GeneralText(str(file) if file else "built-in", passages, digest)


def _texts(file: Path) -> tuple[str, ...]:
    """Passages of a file of rows, each a plain text."""
    found = []
    for item in read_examples(str(file.absolute()), Data(train=str(file)), file.parent):
        if isinstance(item, Example) and item.text is None:
            reason = "is no plain text: rows with a `text` are read here"
            raise DataError("data_format", reason, file=item.origin.file, line=item.origin.line)
        if isinstance(item, Example) and item.text:
            found.append(item.text.strip())
    return tuple(found)


def read_text(file: Path) -> str:
    """Of a file that a flag names; raises DataError."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = "not UTF-8 text; save it as UTF-8"
        raise DataError("data_encoding", reason, file=str(file)) from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else f"cannot be read ({error.strerror})"
        raise DataError("data_missing", reason, file=str(file)) from error


def _passages(text: str) -> tuple[str, ...]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    parts = re.split(r"\n\s*\n", "\n".join(lines))
    return tuple(part.strip() for part in parts if part.strip())
