"""One family of errors; `ftcli.cli` is the only place that catches it.

Exit codes: 1 means data, model or machine had to be looked at to see the fault; 2 means that the
recipe, the flags or an alias alone prove it. Anything outside this family is a bug of ftcli (70).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from ftcli.shell import shown_source


class FtcliError(Exception):
    """Something the user can mend: what is wrong, where, what was found, what to do.

    `code` is a stable word for scripts; `file` and `line` say where, when there is a place.
    """

    exit_code = 1

    def __init__(
        self, code: str, message: str, *, file: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.file = file
        self.line = line

    def __str__(self) -> str:
        return f"{place(self.file, self.line)}{self.message}"


class UsageError(FtcliError):
    """The flags, an alias or the recipe alone prove the request wrong."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One fault of a recipe, at the place where the user wrote it."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{place(self.file, self.line)}{key}{self.message}"


class RecipeError(UsageError):
    """All faults of a recipe at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        first = problems[0]
        super().__init__(
            "recipe",
            "\n".join(str(problem) for problem in problems),
            file=first.file,
            line=first.line,
        )
        self.problems = problems

    def __str__(self) -> str:
        return self.message


class DataError(FtcliError):
    """The data cannot be read, or what is in them cannot be trained on."""


class ModelError(FtcliError):
    """The model cannot be found, opened, or take what the recipe asks of it."""


class MachineError(FtcliError):
    """The machine lacks memory, disk or a device that the plan needs."""


class Stopped(FtcliError):
    """A signal ended the run at a step's end; it can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__("stopped", message)
        self.exit_code = 128 + signal_number


def place(file: str | None, line: int | None) -> str:
    """`shop.yaml:4: `, `shop.yaml: ` or nothing."""
    if file is None:
        return ""
    file = shown_source(file)
    return f"{file}:{line}: " if line is not None else f"{file}: "


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean rank?` when a known word is near, else nothing."""
    found = nearest(word, known)
    return f"; did you mean {found}?" if found is not None else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is nearest, if any is near; a common suffix of files does not count."""
    stem, suffix = os.path.splitext(word)
    near = difflib.get_close_matches(word, list(known), n=5, cutoff=0.6)

    def is_near(other: str) -> bool:
        other_stem, other_suffix = os.path.splitext(other)
        alike = difflib.SequenceMatcher(None, other_stem, stem).ratio()
        return other_suffix != suffix or alike >= 0.6

    return next((other for other in near if is_near(other)), None)
