"""The rows of a file that wait for answers, each for the adapter that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ftcli.data.example import Message
from ftcli.data.json_rows import json_kind
from ftcli.data.prompts import read_prompts
from ftcli.data.row import Reject, Row
from ftcli.errors import DataError
from ftcli.inference.serving import Member, unknown

COLUMN = "adapter"


@dataclass(frozen=True)
class Asked:
    """One conversation, and the name of the adapter that answers it."""

    messages: tuple[Message, ...]
    name: str


@dataclass(frozen=True)
class Questions:
    """A file's conversations in its own order, and the rows that were left out, each with why."""

    asked: tuple[Asked, ...]
    rejected: tuple[str, ...]
    ignores_names: bool
    """Whether rows name others, and there is one run that answers them all."""


def read_questions(members: Sequence[Member], default: str, source: Path) -> Questions:
    """Read a file's rows, each in the format and with the system prompt of its adapter's run.

    The `adapter` of a row counts where there are several; without it `default` answers. Raises
    DataError where no row can be answered.
    """
    readings = [_Reading(member, default, members) for member in members]
    found: dict[int, Asked | str] = {}
    for reading in readings:
        found |= reading.read(source)
    rows = [found[number] for number in sorted(found)]
    asked = tuple(row for row in rows if isinstance(row, Asked))
    rejected = tuple(row for row in rows if isinstance(row, str))
    if not asked:
        reason = f": {rejected[0]}" if rejected else ""
        raise DataError("data_empty", f"holds no prompt{reason}", file=str(source))
    return Questions(asked, rejected, any(reading.ignores_names for reading in readings))


@dataclass
class _Reading:
    """One member's way through the file, which finds its own rows among the others."""

    member: Member
    default: str
    members: Sequence[Member]
    number: int = 0
    """Of the record that is looked at; several may stand on one line."""
    ignores_names: bool = False
    found: dict[int, Asked | str] = field(default_factory=dict)

    def read(self, source: Path) -> dict[int, Asked | str]:
        """By their numbers the member's rows, and those that nobody can answer, each with why."""
        prepared = self.member.opened.prepared
        data = self.member.opened.loaded.recipe.data.model_copy(update={"system": prepared.system})
        for item in read_prompts(str(source.absolute()), data, Path.cwd(), self._is_mine):
            if isinstance(item, Reject):
                self.found[self.number] = f"{item.origin}: {item.reason}"
            else:
                self.found[self.number] = Asked(item.messages, self.member.name)
            self.number += 1
        return self.found

    def _is_mine(self, row: Row) -> bool:
        """Whether the member answers the row; if not, the row is counted here."""
        value = row.fields.get(COLUMN)
        name = self.default if value is None or value == "" else value  # CSV has no null
        if len(self.members) == 1:
            self.ignores_names |= name != self.member.name
            return True
        if name == self.member.name:
            return True
        if all(name != member.name for member in self.members):
            self.found[self.number] = f"{row.origin}: {_no_name(self.members, name)}"
        self.number += 1
        return False


def _no_name(members: Sequence[Member], value: object) -> str:
    if isinstance(value, str):
        return f"{COLUMN} {value!r}: {unknown(members, value)}"
    names = ", ".join(member.name for member in members)
    return f"{COLUMN}: expected a name (there is {names}), found {json_kind(value)}"
