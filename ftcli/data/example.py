"""A row of the user's files, and the example made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ftcli.errors import FtcliError

# Probability of a collision among 10 million rows: 1 in 10^24.
DIGEST_BYTES = 16

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Origin:
    """Place of a row in the user's data; `line` counts from 1 (in parquet, the record's number)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class RowError(FtcliError):
    """This row cannot be used; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__("row", reason)


@dataclass(frozen=True)
class Row:
    """One record of a file."""

    origin: Origin
    fields: Mapping[str, object]


@dataclass(frozen=True)
class RejectedRow:
    """A record that is not used, and why."""

    origin: Origin
    reason: str

    def __str__(self) -> str:
        return f"{self.origin} {self.reason}"

    def record(self) -> dict[str, str | int]:
        """The row as JSON output has it."""
        return {"file": self.origin.file, "line": self.origin.line, "reason": self.reason}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """One conversation to train on, or one plain text (`messages` empty, `text` set)."""

    messages: tuple[Message, ...]
    origin: Origin
    text: str | None = None
    empty_columns: tuple[str, ...] = ()
    """Columns of data.prompt and data.completion, used as templates, without a value."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer, as the model gets them in use."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer, or the plain text."""
        return self.text if self.text is not None else self.messages[-1].content

    @property
    def characters(self) -> int:
        """Total length of its contents."""
        return len(self.text or "") + sum(len(message.content) for message in self.messages)

    def prompt_digest(self) -> bytes:
        """16 bytes, equal for equal prompts (a plain text is its own prompt)."""
        return _digest([self.text] if self.text is not None else _turns(self.prompt))

    def question_digest(self) -> bytes:
        """As `prompt_digest`, without the system turn."""
        turns = self.prompt[1:] if self.prompt[:1] and self.prompt[0].role == "system" else None
        return self.prompt_digest() if turns is None else _digest(_turns(turns))

    def digest(self) -> bytes:
        """16 bytes, equal for equal prompts and answers."""
        return _digest([self.text] if self.text is not None else _turns(self.messages))


def _turns(messages: tuple[Message, ...]) -> list[str]:
    return [part for message in messages for part in (message.role, message.content)]


def _digest(parts: list[str]) -> bytes:
    # JSON keeps the borders between parts, so that ("ab", "c") and ("a", "bc") differ.
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:DIGEST_BYTES]
