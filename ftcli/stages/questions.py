"""The rows of a file that wait for answers, each for the adapter that it names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.data.example import Message, Origin
from ftcli.data.prompts import Question, every_row, read_prompts
from ftcli.data.row import Reject, Row
from ftcli.errors import DataError
from ftcli.stages.serving import Member, unknown

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


def read_questions(members: Sequence[Member], default: str, source: Path) -> Questions:
    """Read a file's rows, each in the format and with the system prompt of its adapter's run.

    The `adapter` of a row counts where there are several; without it `default` answers. Raises
    DataError where no row can be answered.
    """
    several = len(members) > 1
    found: dict[Origin, Asked | str] = {}
    for member in members:
        wanted = _asks_for(member.name, default) if several else every_row
        for item in _of_one(member, source, wanted):
            if isinstance(item, Reject):
                found[item.origin] = item.reason
            else:
                found[item.origin] = Asked(item.messages, member.name)
    if several:
        found |= _unknown_names(members, source)
    rows = sorted(found.items(), key=lambda row: row[0].line)
    asked = tuple(item for _, item in rows if isinstance(item, Asked))
    rejected = tuple(f"{origin}: {item}" for origin, item in rows if isinstance(item, str))
    if not asked:
        reason = f": {rejected[0]}" if rejected else ""
        raise DataError("data_empty", f"holds no prompt{reason}", file=str(source))
    return Questions(asked, rejected)


def _of_one(member: Member, source: Path, wanted: Callable[[Row], bool]) -> list[Question | Reject]:
    prepared = member.opened.prepared
    data = member.opened.loaded.recipe.data.model_copy(update={"system": prepared.system})
    return list(read_prompts(str(source.absolute()), data, Path.cwd(), wanted))


def _asks_for(name: str, default: str) -> Callable[[Row], bool]:
    return lambda row: row.fields.get(COLUMN, default) == name


def _unknown_names(members: Sequence[Member], source: Path) -> dict[Origin, Asked | str]:
    """Rows that name an adapter which is not there."""
    names = {member.name for member in members}
    reasons: dict[Origin, Asked | str] = {}

    def look(row: Row) -> bool:
        name = row.fields.get(COLUMN)
        if name is not None and name not in names:
            reasons[row.origin] = f"{COLUMN} {name!r}: {unknown(members, str(name))}"
        return False

    data = members[0].opened.loaded.recipe.data
    for _ in read_prompts(str(source.absolute()), data, Path.cwd(), look):
        pass
    return reasons
