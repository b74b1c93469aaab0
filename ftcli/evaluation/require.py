"""`ftcli eval --require`: what an evaluation has to show, for scripts and CI."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ftcli.errors import UsageError, did_you_mean
from ftcli.evaluation.wording import value_of
from ftcli.runs.results import EvalResult, ScoreRow

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
LIMIT = re.compile(rf"\s*([\w.]+)\s*(>=|<=|>|<)\s*({NUMBER})(%?)\s*")
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
            name, sign, number, percent = limit.groups()
            value = float(number) / (100 if percent else 1)
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
        # The score of this name, or the one whose name begins with it (`format`: format_rate).
        near = [row for row in result.every_row if row.name.startswith(each.score)]
        row = result.row(each.score) or (near[0] if len(near) == 1 else None)
        if row is None:
            names = [row.name for row in result.every_row]
            raise UsageError(
                "flag",
                f"--require {each.text}: no score {each.score!r}"
                f"{did_you_mean(each.score, names)}; this evaluation has {', '.join(names)}",
            )
        if why := each.failure(row):
            yield f"--require {each.text}: {why}"
