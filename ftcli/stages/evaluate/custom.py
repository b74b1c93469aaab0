"""Scores of the user's own: plain functions in a Python file that the command line names."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType

from ftcli.errors import DataError, UsageError
from ftcli.metrics.judging import Better, Judgement, Question, ScoreKind

Score = Callable[[str, str, str, str], float]
ARGUMENTS = ("prompt", "answer", "reference", "facts")
SIGNATURE = f"({', '.join(ARGUMENTS)}) -> float"


class CustomJudge:
    """Calls each function of the file for each answer."""

    def __init__(self, file: Path, functions: Mapping[str, Score]) -> None:
        self._file = file
        self._functions = functions
        self.kinds: Mapping[str, ScoreKind] = {
            name: ScoreKind(name.replace("_", " "), "value", _better(function))
            for name, function in functions.items()
        }

    def judge(self, answer: str, question: Question) -> Judgement:
        """Raises DataError (`score_failed`) where a function raises or returns no number."""
        return Judgement(
            {name: (self._value(name, answer, question), 1.0) for name in self._functions}
        )

    def _value(self, name: str, answer: str, question: Question) -> float:
        function = self._functions[name]
        given = (question.prompt, answer, question.reference, question.facts)
        try:
            value = float(function(*given))
        except Exception as error:
            raise self._failed(name, answer, f"raised {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise self._failed(name, answer, f"returned {value}, which is no number")
        return value

    def _failed(self, name: str, answer: str, what: str) -> DataError:
        line = inspect.getsourcelines(self._functions[name])[1]
        shown = answer if len(answer) <= 60 else f"{answer[:60]}…"
        return DataError(
            "score_failed",
            f"{name} {what}, for the answer {shown!r}",
            file=str(self._file),
            line=line,
        )


def custom_judge(file: Path, taken: Collection[str]) -> CustomJudge:
    """The functions of a file whose names begin with a letter; runs the file.

    Raises UsageError (exit 2) where it holds none, or one that cannot be called as a score or has
    the name of another; DataError (exit 1) where the file is missing or does not run.
    """
    found = {
        name: value
        for name, value in vars(_run(file)).items()
        if inspect.isfunction(value) and value.__module__ == _module(file) and name[0] != "_"
    }
    if not found:
        raise UsageError("scores", f"--scores {file}: holds no function {SIGNATURE}")
    for name, function in found.items():
        if name in taken or name.endswith("_interval"):
            raise UsageError(
                "scores", f"--scores {file}: {name} is the name of another figure; rename it"
            )
        _require_signature(file, name, function)
    return CustomJudge(file, found)


def _run(file: Path) -> ModuleType:
    if not file.is_file():
        raise DataError("data_missing", "no such file", file=str(file))
    spec = importlib.util.spec_from_file_location(_module(file), file)
    if spec is None or spec.loader is None:
        raise UsageError("scores", f"--scores {file}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_module(file)] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        reason = f"does not run: {type(error).__name__}: {error}"
        raise DataError("score_failed", reason, file=str(file), line=line) from error
    return module


def _module(file: Path) -> str:
    return f"scores_{file.stem}"


def _require_signature(file: Path, name: str, function: Score) -> None:
    try:
        inspect.signature(function).bind(*ARGUMENTS)
    except TypeError as error:
        line = inspect.getsourcelines(function)[1]
        raise UsageError(
            "scores",
            f"--scores {file}:{line}: {name}{inspect.signature(function)} is no score: expected "
            f"{name}{SIGNATURE} (name helpers with a leading underscore)",
        ) from error
    if getattr(function, "better", "higher") not in ("higher", "lower", None):
        raise UsageError(
            "scores",
            f"--scores {file}: {name}.better is {getattr(function, 'better', None)!r}; expected "
            '"higher", "lower" or None',
        )


def _better(function: Score) -> Better | None:
    """`my_score.better = "lower"` in the file turns the direction round."""
    found: Better | None = getattr(function, "better", "higher")
    return found
