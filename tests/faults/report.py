"""pytest plugin: what the tests of the faults came to, as JSON for scripts/faults.py.

pytest -p tests.faults.report -m fault --faults-report FILE
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

from tests.faults.table import FAULTS

WORST_FIRST = ("failed", "skipped", "passed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-report", metavar="FILE", help="write what each fault came to")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--faults-report")
    if file and not hasattr(config, "workerinput"):  # workers of xdist report to their controller
        config.pluginmanager.register(_Collector(Path(file)), "faults-report")


class _Collector:
    """Of each test its numbers, outcome, reason and what it saw, over its three phases."""

    def __init__(self, file: Path) -> None:
        self.file = file
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
        lines = [asdict(fault) | {"tests": self._tests_of(fault.number)} for fault in FAULTS]
        # A worker that died says no number.
        strays = [name for name, test in self.tests.items() if not test["numbers"]]
        report = {
            "complete": os.environ.get("FTCLI_FAULTS") == "complete",
            "machine": f"Python {platform.python_version()}, torch {version('torch')}, "
            f"{platform.machine()} {platform.system()}",
            "lines": lines,
            "broken": sorted({*self.broken, *strays}),
        }
        self.file.write_text(json.dumps(report, indent=1), encoding="utf-8")

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
