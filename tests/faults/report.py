"""pytest plugin: what the tests of the faults came to, as JSON for scripts/faults.py or as lines.

pytest -p tests.faults.report -m fault --faults-report FILE
pytest -p tests.faults.report --faults-table
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.faults.lines import lines_of
from tests.faults.table import FAULTS

WORST_FIRST = ("failed", "skipped", "passed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-report", metavar="FILE", help="write what each fault came to")
    parser.addoption("--faults-table", action="store_true", help="print a line for each fault")


def pytest_configure(config: pytest.Config) -> None:
    file, table = config.getoption("--faults-report"), config.getoption("--faults-table")
    # Workers of xdist report to their controller.
    if (file or table) and not hasattr(config, "workerinput"):
        collector = _Collector(Path(file) if file else None, table=table)
        config.pluginmanager.register(collector, "faults-report")


class _Collector:
    """Of each test its numbers, outcome, reason and what it saw, over its three phases."""

    def __init__(self, file: Path | None, *, table: bool) -> None:
        self.file = file
        self.table = table
        self.tests: dict[str, dict[str, Any]] = {}
        self.broken: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = list(report.user_properties)
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "reason": ""})
        test["numbers"] = [value for name, value in said if name == "fault"]
        test["observed"] = [value for name, value in said if name == "observed"]
        if WORST_FIRST.index(report.outcome) < WORST_FIRST.index(test["outcome"]):
            test |= {"outcome": report.outcome, "reason": reason_of(report)}

    def pytest_sessionfinish(self) -> None:
        if self.file is not None:
            self.file.write_text(json.dumps(self._report(), indent=1), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.table:
            terminalreporter.section("faults")
            for line in lines_of(self._report()):
                terminalreporter.write_line(line.plain())

    def _report(self) -> dict[str, Any]:
        lines = [asdict(fault) | {"tests": self._tests_of(fault.number)} for fault in FAULTS]
        # A worker that died says no number.
        strays = [name for name, test in self.tests.items() if not test["numbers"]]
        return {
            "complete": os.environ.get("FTCLI_FAULTS") == "complete",
            "machine": f"Python {platform.python_version()}, torch {version('torch')}, "
            f"{platform.machine()} {platform.system()}",
            "lines": lines,
            "broken": sorted({*self.broken, *strays}),
        }

    def _tests_of(self, number: int) -> list[dict[str, Any]]:
        return [
            {"name": name, **{key: test[key] for key in ("outcome", "reason", "observed")}}
            for name, test in sorted(self.tests.items())
            if number in test["numbers"]
        ]


def reason_of(report: pytest.TestReport) -> str:
    """Why a test was skipped or failed, on one line."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return next(iter(text.strip().splitlines()), "no reason given")
