"""One family of errors; `ftcli.cli` is the only place that catches it.

Exit codes: 2 if the recipe, the flags or an alias alone show the error; 1 if data, model or machine
had to be checked. Any other exception is a bug of ftcli (70).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from ftcli.shell import shown_source


class FtcliError(Exception):
    """Something the user can fix: what is wrong, where, what was found, what to do.

    `code` is a stable word for scripts; `file` and `line` are the place, if there is one.
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
    """An error in the flags, an alias or the recipe alone."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One error of a recipe, at the place where the user wrote it."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{place(self.file, self.line)}{key}{self.message}"


class RecipeError(UsageError):
    """All errors of a recipe together."""

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
    """The data cannot be read or cannot be used."""


class ModelError(FtcliError):
    """The model cannot be found or opened, or does not support what the recipe asks for."""


class MachineError(FtcliError):
    """The machine lacks memory, disk or a device that the plan needs."""


class Stopped(FtcliError):
    """A signal stopped the run after a step; it can be resumed."""

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
    """`; did you mean rank?` if a known word is near, else nothing."""
    found = nearest(word, known)
    return f"; did you mean {found}?" if found is not None else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The nearest known word, if any is near; a common file suffix does not count."""
    stem, suffix = os.path.splitext(word)
    near = difflib.get_close_matches(word, list(known), n=5, cutoff=0.6)

    def is_near(other: str) -> bool:
        other_stem, other_suffix = os.path.splitext(other)
        alike = difflib.SequenceMatcher(None, other_stem, stem).ratio()
        return other_suffix != suffix or alike >= 0.6

    return next((other for other in near if is_near(other)), None)
