"""A file of prompts, and the file of answers, which repeats every column of its row.

`answers.csv.meta.json` next to `answers.csv` has the run and settings of the answers, which the
prompts alone do not show.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.data.example import Message, RejectedRow, Row, RowError
from ftcli.data.json_rows import LONGEST, json_kind
from ftcli.data.prompts import read_prompt_rows, to_prompts
from ftcli.data.table_rows import delimiter_of
from ftcli.errors import DataError, FtcliError
from ftcli.inference.several_adapters import Member, unknown_name
from ftcli.runs.atomic import write_json, write_text

if TYPE_CHECKING:
    from ftcli.inference.generation import Answer

ADAPTER = "adapter"
# Columns of the output besides those of the input.
LINE, ANSWER, STOPPED = "line", "answer", "stopped"
TABLES = (".csv", ".tsv")

# Name of an adapter → weights and settings of its answers.
MadeWith = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class PromptRow:
    """One prompt, and the name of the adapter that answers it."""

    messages: tuple[Message, ...]
    adapter: str
    columns: Mapping[str, object]
    """Columns of the output before the answer: those of the input, the line, and the adapter if
    there are several."""


@dataclass(frozen=True)
class PromptFile:
    """A file's rows in the file's order, and why the others are skipped."""

    rows: tuple[PromptRow, ...]
    rejected: tuple[str, ...]
    ignores_adapter_column: bool
    """Whether rows name other adapters, and a single run answers them all."""


def read_prompt_file(members: Sequence[Member], default: str, source: Path) -> PromptFile:
    """Read a file's rows, each in the format and with the system prompt of its adapter's run.

    A row's column `adapter` counts if there are several members; without it `default` answers.
    Raises DataError if no row can be answered.
    """
    found: dict[int, PromptRow | str] = {}
    rows_of: dict[str, dict[int, Row]] = {member.name: {} for member in members}
    for index, row in enumerate(read_prompt_rows(str(source.absolute()))):
        try:
            if isinstance(row, RejectedRow):
                raise RowError(row.reason)
            rows_of[_adapter_of(row, members, default)][index] = row
        except RowError as error:
            found[index] = f"{row.origin}: {error}"
    for member in members:
        found |= _prompts_of(member, rows_of[member.name], source, named=len(members) > 1)
    in_order = [found[index] for index in sorted(found)]
    rejected = tuple(item for item in in_order if isinstance(item, str))
    accepted = tuple(item for item in in_order if isinstance(item, PromptRow))
    if not accepted:
        reason = f": {rejected[0]}" if rejected else ""
        raise DataError("data_empty", f"holds no prompt{reason}", file=str(source))
    named = (row.fields.get(ADAPTER) for row in rows_of[default].values())
    ignored = len(members) == 1 and any(name not in (None, "", default) for name in named)
    return PromptFile(accepted, rejected, ignored)


def _adapter_of(row: Row, members: Sequence[Member], default: str) -> str:
    """Name of the adapter that answers a row; raises RowError if none can."""
    if all(value is None or not str(value).strip() for value in row.fields.values()):
        raise RowError("the row is empty")
    name = row.fields.get(ADAPTER)
    if len(members) == 1 or name is None or name == "":  # CSV has no null
        return default
    names = [member.name for member in members]
    if not isinstance(name, str):
        expected = f"expected a name (there is {', '.join(names)})"
        raise RowError(f"{ADAPTER}: {expected}, found {json_kind(name)}")
    if name not in names:
        raise RowError(f"{ADAPTER} {name!r}: {unknown_name(members, name)}")
    return name


def _prompts_of(
    member: Member, rows: Mapping[int, Row], source: Path, *, named: bool
) -> dict[int, PromptRow | str]:
    """A member's prompts by their index in the file, or why a row is not a prompt."""
    data = member.opened.recipe.data
    data = data.model_copy(update={"system": member.opened.prepared.system})
    prompts = to_prompts(rows.values(), data, str(source))
    found: dict[int, PromptRow | str] = {}
    for (index, row), messages in zip(rows.items(), prompts, strict=True):
        if isinstance(messages, RejectedRow):
            found[index] = f"{messages.origin}: {messages.reason}"
        else:
            adapter = {ADAPTER: member.name} if named else {}
            found[index] = PromptRow(messages, member.name, _columns(row) | adapter)
    return found


def _columns(row: Row) -> dict[str, object]:
    """The row's columns and its line; `input_` marks columns with the name of an added one."""
    columns = {
        f"input_{name}" if name in (LINE, ANSWER, STOPPED) else name: value
        for name, value in row.fields.items()
    }
    return {**columns, LINE: row.origin.line}


class AnswersFile:
    """Answers in their rows' order: a table if the name ends in .csv or .tsv, else JSON lines.

    A table has the input's delimiter and its byte order mark, which Excel needs for UTF-8.
    """

    def __init__(self, path: Path, rows: Sequence[PromptRow], source: Path) -> None:
        self.path = path
        self._rows = rows
        self._table = path.suffix.lower() in TABLES
        self._start, self._delimiter = "", "\t" if path.suffix.lower() == ".tsv" else ","
        self._names = list(dict.fromkeys(name for row in rows for name in row.columns))
        if self._table:
            self._take_dialect(source)
            self._start += self._line([*self._names, ANSWER, STOPPED])

    def _take_dialect(self, source: Path) -> None:
        if source.suffix.lower() in TABLES:
            with source.open("rb") as file:
                header = file.readline(LONGEST)
            if header.startswith(codecs.BOM_UTF8):
                self._start = "\ufeff"
            if self.path.suffix.lower() == ".csv":
                self._delimiter = delimiter_of(header.decode(errors="replace"))

    def count(self) -> int:
        """Number of answers in the file; removes a last one cut by a kill.

        Raises FtcliError (`output_taken`) if they are not the answers to these rows.
        """
        if not self.path.is_file():
            return 0
        with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
            text = file.read()
        if not (text.startswith(self._start) or self._start.startswith(text)):
            raise self._taken("its columns are not those of the input and of an answer", 1)
        count, end = 0, len(self._start)
        for record in self._records(text[end:]):
            if not self._answers(record, count):
                raise self._taken_at(text[:end])
            count += 1
            end += len(record)
        rest = text[end:].rstrip("\ufffd")  # a kill may cut a character
        if rest and not self._answers(rest, count, cut=True):
            raise self._taken_at(text[:end])
        whole = text[:end] if count else ""  # the header is written with the first answer
        if text != whole:
            write_text(self.path, whole)
        return count

    def _answers(self, record: str, index: int, *, cut: bool = False) -> bool:
        """Whether a record, complete or cut, is an answer to the row at `index`."""
        if index >= len(self._rows):
            return False
        expected = self._beginning(index)
        return record.startswith(expected) or (cut and expected.startswith(record))

    def _taken_at(self, before: str) -> FtcliError:
        line = before.count("\n") + 1
        return self._taken("this is not an answer to the input's row", line)

    def append(self, index: int, answer: Answer) -> None:
        """Write the answer to the row at `index`."""
        if self._table:
            end = self._line([answer.text, answer.stopped])
        else:
            fields = {ANSWER: answer.text, STOPPED: answer.stopped}
            end = json.dumps(fields, ensure_ascii=False)[1:] + "\n"
        with self.path.open("a", encoding="utf-8", newline="") as file:
            start = self._start if index == 0 else ""
            file.write(start + self._beginning(index) + end)

    def _beginning(self, index: int) -> str:
        """A row's record up to its answer."""
        columns = self._rows[index].columns
        if self._table:
            cells = [columns.get(name) for name in self._names]
            return self._line(cells).removesuffix("\r\n") + self._delimiter
        return json.dumps(columns, ensure_ascii=False, default=str)[:-1] + ", "

    def _line(self, values: Sequence[object]) -> str:
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=self._delimiter).writerow(map(_cell, values))
        return written.getvalue()

    def _records(self, text: str) -> Iterator[str]:
        """Complete records; a value may contain line ends."""
        lines = io.StringIO(text, newline="" if self._table else "\n")
        if not self._table:
            yield from (line for line in lines if line.endswith("\n"))
            return
        record: list[str] = []

        def watched() -> Iterator[str]:
            for line in lines:
                record.append(line)
                yield line

        csv.field_size_limit(LONGEST)
        with suppress(csv.Error):  # the last record is cut within quotes
            for _ in csv.reader(watched(), delimiter=self._delimiter, strict=True):
                if not record[-1].endswith("\r\n"):
                    return
                yield "".join(record)
                record.clear()

    def begin(self, made: MadeWith) -> None:
        """Write weights and settings before the first answer; not next to a pipe."""
        if self.path.is_file() or not self.path.exists():
            write_json(self._settings, made)

    def require_made_with(self, made: MadeWith) -> None:
        """Raise FtcliError (`output_taken`) if the file has answers with other settings."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        try:
            before = json.loads(self._settings.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise self._taken(
                f"without {self._settings.name} the settings of its answers are unknown"
            ) from None
        if changes := list(_changes(before, made)):
            raise self._taken(f"its answers have other settings: {', '.join(changes)}")

    @property
    def _settings(self) -> Path:
        return self.path.with_name(f"{self.path.name}.meta.json")

    def _taken(self, reason: str, line: int | None = None) -> FtcliError:
        message = f"{reason}; choose another --output, or delete this file"
        return FtcliError("output_taken", message, file=str(self.path), line=line)


def _cell(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (bool, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def made_with(members: Sequence[Member], seed: int | None) -> MadeWith:
    """Weights and settings of answers, by the names of the adapters."""
    return {member.name: _made_with(member, seed) for member in members}


def _made_with(member: Member, seed: int | None) -> dict[str, object]:
    """Trained weights and generation settings; for a weighted sum, whose parts are members too,
    its text."""
    if member.parts:
        return {"sum": member.shown_sum()}
    weights = json.dumps(member.opened.run.read_manifest().get("weights"), sort_keys=True)
    settings = member.opened.recipe.generation
    return {
        "weights": hashlib.sha256(weights.encode()).hexdigest()[:16],
        "seed": seed if settings.temperature else None,
        **settings.model_dump(mode="json"),
    }


def _changes(before: MadeWith, now: MadeWith) -> Iterator[str]:
    """Differences, in words."""
    yield from (f"without {name}" for name in now if name not in before)
    yield from (f"with {name}" for name in before if name not in now)
    for name in filter(before.__contains__, now):
        for key in {**before[name], **now[name]}:
            values = (before[name].get(key), now[name].get(key))
            if values[0] != values[1]:
                old, new = (v if isinstance(v, str) else json.dumps(v) for v in values)
                yield f"{name} with {key} {old}, now {new}"
