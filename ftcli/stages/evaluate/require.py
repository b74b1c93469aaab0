"""`ftcli eval --require`: what an evaluation has to show, for scripts and CI."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ftcli.errors import UsageError, did_you_mean
from ftcli.results import EvalResult, ScoreRow
from ftcli.stages.evaluate.wording import value_of

LIMIT = re.compile(r"\s*([\w.]+)\s*(>=|<=|>|<)\s*([-+\d.eE]+%?)\s*")
WORD = re.compile(r"\s*([\w.]+)\s*:\s*(better|not-worse)\s*")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Requirement:
    """`format>=0.9`, `loss:better`, `general_text:not-worse`."""

    text: str
    score: str
    sign: str
    """A comparison with `limit`, or `better`, `not-worse` for the verdict against the base."""
    limit: float = 0.0

    def failure(self, row: ScoreRow) -> str | None:
        """Why it does not hold, in words; none: it holds."""
        if self.sign in COMPARE:
            if row.tuned is not None and COMPARE[self.sign](row.tuned.value, self.limit):
                return None
            return f"{row.label} is {value_of(row, row.tuned)}"
        verdict = row.tuned_vs_base.verdict if row.tuned_vs_base is not None else None
        if verdict == "better" or (self.sign == "not-worse" and verdict not in (None, "worse")):
            return None
        before, after = value_of(row, row.base), value_of(row, row.tuned)
        return f"{row.label} {before} → {after} is {verdict or 'not compared'}"


def requirements(asked: Sequence[str]) -> list[Requirement]:
    """Raises UsageError (`flag`) for one that cannot be read."""
    found = []
    for text in asked:
        if limit := LIMIT.fullmatch(text):
            name, sign, number = limit.groups()
            try:
                value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
            except ValueError:
                raise UsageError("flag", f"--require {text}: {number!r} is not a number") from None
            found.append(Requirement(text, name, sign, value))
        elif word := WORD.fullmatch(text):
            found.append(Requirement(text, word[1], word[2]))
        else:
            raise UsageError(
                "flag",
                f"--require {text}: expected a score with a limit (format>=0.9), or a verdict "
                "(loss:better, general_text:not-worse)",
            )
    return found


def failures(wanted: Sequence[Requirement], result: EvalResult) -> Iterator[str]:
    """Requirements that do not hold; raises UsageError for a score that was not measured."""
    for each in wanted:
        if why := each.failure(_row(each, result)):
            yield f"--require {each.text}: {why}"


def _row(wanted: Requirement, result: EvalResult) -> ScoreRow:
    """The score of this name, or the one whose name begins with it (`format`: format_rate)."""
    names = [row.name for row in result.every_row]
    near = [name for name in names if name.startswith(wanted.score)]
    name = wanted.score if wanted.score in names else near[0] if len(near) == 1 else ""
    row = result.row(name)
    if row is None:
        raise UsageError(
            "flag",
            f"--require {wanted.text}: no score {wanted.score!r}"
            f"{did_you_mean(wanted.score, names)}; this evaluation has {', '.join(names)}",
        )
    return row
