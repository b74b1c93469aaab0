"""The table of faults with what their tests came to, line by line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Test:
    """One test and what it came to: passed, failed or skipped."""

    name: str
    outcome: str
    reason: str
    observed: tuple[str, ...]

    @property
    def failure(self) -> str:
        """The test and the first line of what it says, without this machine's folders."""
        reason = re.sub(r"/[^\s'\"]*/pytest-\d+/", "…/", self.reason)
        return f"{self.name.rpartition('/')[2]}: {reason:.160}"


def grouped(phrases: Sequence[str]) -> list[str]:
    """`full: the same`, `lora: the same` → `full, lora: the same`."""
    whose: dict[tuple[bool, str], dict[str, None]] = {}
    for phrase in phrases:
        subject, colon, text = phrase.partition(": ")
        key = (bool(colon), text if colon else phrase)
        whose.setdefault(key, {})[subject] = None
    return [
        f"{', '.join(subjects)}: {text}" if named else text
        for (named, text), subjects in whose.items()
    ]


@dataclass(frozen=True)
class Line:
    """One fault with its tests."""

    number: int
    group: str
    injected: str
    required: str
    tests: tuple[Test, ...]

    def of(self, outcome: str) -> list[Test]:
        return [test for test in self.tests if test.outcome == outcome]

    @property
    def verdict(self) -> str:
        """`holds` where something has shown it and nothing has shown the opposite."""
        if self.of("failed"):
            return "FAILS"
        if self.of("passed"):
            return "holds"
        reasons = dict.fromkeys(test.reason for test in self.tests)
        return f"not run: {'; '.join(reasons) or 'no test was collected'}"

    @property
    def observed(self) -> str:
        """What the tests say they saw; of a failure, the test and its first line."""
        if failed := self.of("failed"):
            return "; ".join(test.failure for test in failed)
        passed = self.of("passed")
        if phrases := grouped([phrase for test in passed for phrase in test.observed]):
            return "; ".join(phrases)
        return f"{len(passed)} test{'s' * (len(passed) > 1)} passed" if passed else "–"

    def plain(self) -> str:
        """All of it on one line."""
        return (
            f"{self.number:>2} {self.verdict} | injected: {self.injected} | observed: "
            f"{self.observed} | required: {self.required}"
        )


def lines_of(report: dict[str, Any]) -> list[Line]:
    return [
        Line(
            **{key: line[key] for key in ("number", "group", "injected", "required")},
            tests=tuple(
                Test(test["name"], test["outcome"], test["reason"], tuple(test["observed"]))
                for test in line["tests"]
            ),
        )
        for line in report["lines"]
    ]
