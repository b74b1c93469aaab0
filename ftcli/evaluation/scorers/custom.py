"""The user's own scores: functions in a Python file (`--scores`)."""

from __future__ import annotations

import inspect
import math
import reprlib
import runpy
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType

from ftcli.errors import DataError, UsageError
from ftcli.evaluation.scorers.scorer import ExampleResult, Question, ScoreKind

Score = Callable[[str, str, str, str], float]
ARGUMENTS = ("prompt", "answer", "reference", "facts")
SIGNATURE = f"({', '.join(ARGUMENTS)}) -> float"
# SystemExit is not an Exception, and must not end an evaluation.
RAISED = (Exception, SystemExit)


@dataclass
class CustomScorer:
    """Calls every function of the file for each answer."""

    file: Path
    functions: Mapping[str, Score]
    are_bool: dict[str, bool] = field(default_factory=dict)
    """Name → whether the function has returned only booleans so far."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """Booleans make a share of the rows; numbers stay values, even if all are 0 or 1."""
        return {
            name: ScoreKind(
                name.replace("_", " "),
                "share" if self.are_bool.get(name) else "value",
                getattr(function, "better", "higher"),
            )
            for name, function in self.functions.items()
        }

    def score(self, answer: str, question: Question) -> ExampleResult:
        """Raises DataError (`score_failed`) if a function raises or returns no number."""
        return ExampleResult(
            {name: (self._value(name, answer, question), 1.0) for name in self.functions}
        )

    def _value(self, name: str, answer: str, question: Question) -> float:
        function = self.functions[name]
        line = _first_line(function)
        try:
            with redirect_stdout(sys.stderr):  # stdout is the result's
                returned = function(question.prompt, answer, question.reference, question.facts)
        except RAISED as error:
            line = _line_of(error, self.file) or line
            raise self._failed(name, answer, f"raised {_named(error)}", line) from error
        value = _number(returned)
        if value is None:
            hint = " (a missing return?)" if returned is None else ""
            what = f"returned {reprlib.repr(returned)}, not a finite number{hint}"
            raise self._failed(name, answer, what, line)
        # numpy has a bool of its own.
        is_bool = isinstance(returned, bool) or str(getattr(returned, "dtype", "")) == "bool"
        self.are_bool[name] = self.are_bool.get(name, True) and is_bool
        return value

    def _failed(self, name: str, answer: str, what: str, line: int) -> DataError:
        shown = answer if len(answer) <= 60 else f"{answer[:60]}…"
        message = f"{name} {what}, for the answer {shown!r}"
        return DataError("score_failed", message, file=str(self.file), line=line)


def custom_scorer(file: Path, taken: Collection[str]) -> CustomScorer:
    """Run the file; its functions without a leading underscore are scores.

    Raises UsageError (exit 2) if it has none, or one with another signature or a taken name;
    DataError (exit 1) if the file is missing or does not run.
    """
    module = f"scores_{file.stem}"
    functions = {
        name: value
        for name, value in _run(file, module).items()
        if inspect.isfunction(value) and value.__module__ == module and name[0] != "_"
    }
    faults = [f": has no function {SIGNATURE}"] if not functions else []
    for name, function in functions.items():
        if name in taken or name.endswith("_interval"):
            faults.append(f": {name} is the name of another score; rename it")
        elif fault := _fault(name, function):
            faults.append(f":{_first_line(function)}: {fault}")
    if faults:
        raise UsageError("scores", f"--scores {file}{faults[0]}")
    return CustomScorer(file, functions)


def _run(file: Path, name: str) -> Mapping[str, object]:
    """The globals of a file that was run as a module of this name."""
    if not file.is_file():
        raise DataError("data_missing", "no such file", file=str(file))
    try:
        with redirect_stdout(sys.stderr):
            return runpy.run_path(str(file), run_name=name)
    except RAISED as error:
        reason, line = f"does not run: {_named(error)}", _line_of(error, file)
        raise DataError("score_failed", reason, file=str(file), line=line) from error


def _fault(name: str, function: Callable[..., object]) -> str | None:
    """Why a function cannot be a score."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return f"{name} is async; a score is a plain def"
    signature = inspect.signature(function)
    try:
        signature.bind(*ARGUMENTS)
    except TypeError:
        return (
            f"{name}{signature} is not a score: expected {name}{SIGNATURE} (name helpers with a "
            "leading underscore)"
        )
    better = getattr(function, "better", "higher")
    if better not in ("higher", "lower", None):
        return f'{name}.better is {better!r}; expected "higher", "lower" or None'
    return None


def _number(returned: object) -> float | None:
    """None for text, NaN, infinities, and whatever is not a number."""
    if isinstance(returned, (str, bytes, bytearray)):
        return None
    try:
        value = float(returned)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - the user's value has any type
        return None
    return value if math.isfinite(value) else None


def _first_line(function: Callable[..., object]) -> int:
    code: CodeType = inspect.unwrap(function).__code__
    return code.co_firstlineno


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _line_of(error: BaseException, file: Path) -> int | None:
    """The last line of the file in the error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    passed = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError) and error.filename:
        passed.append((error.filename, error.lineno))
    lines = [line for name, line in passed if Path(name).resolve() == file.resolve()]
    return lines[-1] if lines else None
