"""General ability before and after training: text on many subjects, instructions of many kinds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ftcli.config.recipe import Data
from ftcli.config.section import data_suffix
from ftcli.data.example import Example, Origin, RejectedRow, Row
from ftcli.data.sources import read_examples, read_rows, read_rows_as_examples
from ftcli.errors import DataError

BUILT_IN_TEXT = Path(__file__).with_name("general_text.txt")
BUILT_IN_INSTRUCTIONS = Path(__file__).with_name("general_instructions.jsonl")
# A regular expression for the whole answer.
CHECK_COLUMN = "check"


def general_text(file: Path | None) -> tuple[str, tuple[str, ...]]:
    """Name and passages of the built-in text or of a file; raises DataError.

    A file has rows with a `text`, or passages between blank lines and comments after `#`.
    """
    if file is not None and data_suffix(file.name):
        passages = _passages_of_rows(file)
    else:
        text = read_text(file or BUILT_IN_TEXT)
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        parts = (part.strip() for part in re.split(r"\n\s*\n", "\n".join(lines)))
        passages = tuple(part for part in parts if part)
    if not passages:
        raise DataError("data_empty", "has no passage of text", file=str(file))
    return str(file) if file else "built-in", passages


def _passages_of_rows(file: Path) -> tuple[str, ...]:
    found = []
    for item in read_examples(str(file.absolute()), Data(train=str(file))):
        if isinstance(item, Example) and item.text is None:
            raise _error("not plain text: expected rows with a `text`", item.origin)
        if isinstance(item, Example) and item.text:
            found.append(item.text.strip())
    return tuple(found)


def read_text(file: Path) -> str:
    """The text of a file that a flag names; raises DataError."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = "not UTF-8 text; save it as UTF-8"
        raise DataError("data_encoding", reason, file=str(file)) from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else f"cannot be read ({error.strerror})"
        raise DataError("data_missing", reason, file=str(file)) from error


@dataclass(frozen=True)
class Instruction:
    """A prompt with a reference answer, and a pattern that every right answer matches."""

    example: Example
    check: re.Pattern[str] | None
    """None: answers are not checked."""

    def is_followed_by(self, answer: str) -> bool | None:
        """Whether the answer follows the instruction; None: not checked."""
        return None if self.check is None else self.check.fullmatch(answer.strip()) is not None


def general_instructions(file: Path | None) -> tuple[Instruction, ...]:
    """The built-in instructions, or a file in any format that ftcli reads; raises DataError.

    A row may have a `check`.
    """
    source = str((file or BUILT_IN_INSTRUCTIONS).absolute())
    rows = list(read_rows(source))
    examples = read_rows_as_examples(iter(rows), Data(train=source))
    found = []
    for row, example in zip(rows, examples, strict=True):
        if isinstance(row, RejectedRow):
            raise _error(row.reason, row.origin)
        if isinstance(example, RejectedRow):
            raise _error(example.reason, row.origin)
        if not example.messages:
            raise _error("a plain text, not an instruction", row.origin)
        found.append(Instruction(example, _check(row)))
    if not found:
        raise DataError("data_empty", "has no instruction", file=source)
    return tuple(found)


def _check(row: Row) -> re.Pattern[str] | None:
    value = row.fields.get(CHECK_COLUMN)
    if value is None:
        return None
    try:
        return re.compile(str(value), re.DOTALL)
    except re.error as error:
        reason = f"{CHECK_COLUMN}: {json.dumps(value)} is not a regular expression: {error}"
        raise _error(reason, row.origin) from error


def _error(reason: str, origin: Origin) -> DataError:
    return DataError("data_format", reason, file=origin.file, line=origin.line)
