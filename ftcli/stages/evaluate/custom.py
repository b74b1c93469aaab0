"""Scores of the user's own: plain functions in a Python file that the command line names."""

from __future__ import annotations

import importlib.util
import inspect
import math
import reprlib
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

from ftcli.errors import DataError, UsageError
from ftcli.metrics.scorer import Better, ExampleResult, Question, ScoreKind, Unit

Score = Callable[[str, str, str, str], float]
ARGUMENTS = ("prompt", "answer", "reference", "facts")
SIGNATURE = f"({', '.join(ARGUMENTS)}) -> float"
# What code of the user's may raise: sys.exit is no Exception, and is not to end an evaluation.
RAISED = (Exception, SystemExit)


@dataclass(frozen=True)
class OwnScoreKind(ScoreKind):
    """Told apart in the evaluation: what is enough of it only the user knows."""

    own: bool = True


class CustomScorer:
    """Calls each function of the file for each answer."""

    def __init__(self, file: Path, functions: Mapping[str, Score]) -> None:
        self._file = file
        self._functions = functions
        self._are_bool: dict[str, bool] = {}
        """Name → whether all that the function has returned so far is true or false."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """True and false make a share of the rows once they are judged; numbers stay values, also
        where all are 0 or 1, as lengths may be."""
        return {
            name: OwnScoreKind(name.replace("_", " "), self._unit(name), _better(function))
            for name, function in self._functions.items()
        }

    def _unit(self, name: str) -> Unit:
        return "share" if self._are_bool.get(name) else "value"

    def score(self, answer: str, question: Question) -> ExampleResult:
        """Raises DataError (`score_failed`) where a function raises or returns no number."""
        return ExampleResult(
            {name: (self._value(name, answer, question), 1.0) for name in self._functions}
        )

    def _value(self, name: str, answer: str, question: Question) -> float:
        function = self._functions[name]
        given = (question.prompt, answer, question.reference, question.facts)
        try:
            with redirect_stdout(sys.stderr):  # stdout is the result's
                said = function(*given)
        except RAISED as error:
            line = _line_of(error, self._file)
            raise self._failed(name, answer, f"raised {_named(error)}", line) from error
        value = _number(said)
        if value is None:
            hint = " (a missing return?)" if said is None else ""
            what = f"returned {reprlib.repr(said)}, which is no number{hint}"
            raise self._failed(name, answer, what)
        # Those of numpy are not Python's.
        is_bool = isinstance(said, bool) or str(getattr(said, "dtype", "")) == "bool"
        self._are_bool[name] = self._are_bool.get(name, True) and is_bool
        return value

    def _failed(self, name: str, answer: str, what: str, line: int | None = None) -> DataError:
        shown = answer if len(answer) <= 60 else f"{answer[:60]}…"
        return DataError(
            "score_failed",
            f"{name} {what}, for the answer {shown!r}",
            file=str(self._file),
            line=line or _first_line(self._functions[name]),
        )


def _number(said: object) -> float | None:
    """None where it is no finite number; text is none, whatever it spells."""
    if isinstance(said, (str, bytes, bytearray)):
        return None
    try:
        value = float(said)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - of whatever type the user's value is
        return None
    return value if math.isfinite(value) else None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _first_line(function: Callable[..., object]) -> int:
    code: CodeType = inspect.unwrap(function).__code__
    return code.co_firstlineno


def _line_of(error: BaseException, file: Path) -> int | None:
    """The last line of the file on the way to the error."""
    passed = [
        (frame.f_code.co_filename, at) for frame, at in traceback.walk_tb(error.__traceback__)
    ]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        passed.append((error.filename, error.lineno))
    whole = file.resolve()
    lines = [line for name, line in passed if Path(name).resolve() == whole]
    return lines[-1] if lines else None


def custom_scorer(file: Path, taken: Collection[str]) -> CustomScorer:
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
    return CustomScorer(file, found)


def _run(file: Path) -> ModuleType:
    if not file.is_file():
        raise DataError("data_missing", "no such file", file=str(file))
    spec = importlib.util.spec_from_file_location(_module(file), file)
    if spec is None or spec.loader is None:
        raise UsageError("scores", f"--scores {file}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_module(file)] = module  # dataclasses look their own module up
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except RAISED as error:
        reason, line = f"does not run: {_named(error)}", _line_of(error, file)
        raise DataError("score_failed", reason, file=str(file), line=line) from error
    return module


def _module(file: Path) -> str:
    return f"scores_{file.stem}"


def _require_signature(file: Path, name: str, function: Score) -> None:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise UsageError(
            "scores",
            f"--scores {file}:{_first_line(function)}: {name} is async, and a score is called "
            "without awaiting it: def without async",
        )
    try:
        inspect.signature(function).bind(*ARGUMENTS)
    except TypeError as error:
        raise UsageError(
            "scores",
            f"--scores {file}:{_first_line(function)}: {name}{inspect.signature(function)} is no "
            f"score: expected {name}{SIGNATURE} (name helpers with a leading underscore)",
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
