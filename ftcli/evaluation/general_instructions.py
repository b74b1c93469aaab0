"""Instructions of many kinds, none of them the task: does the model still do as it is told?"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ftcli.config.recipe import Data
from ftcli.data.example import Example
from ftcli.data.reading import read_rows_as_examples
from ftcli.data.row import Reject, Row
from ftcli.data.source import read_rows
from ftcli.errors import DataError

OWN = Path(__file__).with_name("general_instructions.jsonl")
COLUMN = "check"


@dataclass(frozen=True)
class Instruction:
    """A prompt with an answer, and what every right answer matches (none: nothing is checked)."""

    example: Example
    check: re.Pattern[str] | None

    def is_followed_by(self, answer: str) -> bool | None:
        """Whether an answer does as it was told; none where that is not checked."""
        if self.check is None:
            return None
        return self.check.fullmatch(answer.strip()) is not None


def general_instructions(file: Path | None, base: Path) -> tuple[Instruction, ...]:
    """The built-in instructions, or those of a file in any format that ftcli reads.

    A row's `check`, where it has one, is a regular expression that the whole answer has to match.
    Raises DataError.
    """
    source = str((file or OWN).absolute())
    data = Data(train=source)
    rows = list(read_rows(source, base))
    examples = list(read_rows_as_examples(iter(rows), data))
    found = []
    for row, example in zip(rows, examples, strict=True):
        if isinstance(row, Reject) or isinstance(example, Reject):
            reject = example if isinstance(example, Reject) else row
            assert isinstance(reject, Reject)
            raise _wrong(reject.reason, reject.origin.file, reject.origin.line)
        if not example.messages:
            raise _wrong("is a plain text, and no instruction", row.origin.file, row.origin.line)
        found.append(Instruction(example, _check(row)))
    if not found:
        raise DataError("data_empty", "holds no instruction", file=source)
    return tuple(found)


def _check(row: Row) -> re.Pattern[str] | None:
    value = row.fields.get(COLUMN)
    if value is None:
        return None
    try:
        return re.compile(str(value), re.DOTALL)
    except re.error as error:
        reason = f"{COLUMN}: {json.dumps(value)} is not a regular expression: {error}"
        raise _wrong(reason, row.origin.file, row.origin.line) from error


def _wrong(reason: str, file: str, line: int) -> DataError:
    return DataError("data_format", reason, file=file, line=line)
