"""What tests say reaches the report from every worker, and the report becomes a verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import faults as script

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = "from tests.conftest import complete, observed, pytest_collection_modifyitems\n"
TESTS = """
import pytest

@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.fault(1, 2)
def test_that_holds(number, observed, complete):
    observed(f"{number} of 2")
    observed("complete" if complete else "short")

@pytest.mark.fault(2)
def test_that_fails(observed):
    observed("before")
    assert 1 + 1 == 3, "arithmetic | broke"

@pytest.mark.fault(3)
@pytest.mark.skip(reason="needs a card")
def test_that_is_skipped(): ...

@pytest.fixture
def broken():
    yield
    raise OSError("left open")

@pytest.mark.fault(4)
def test_that_breaks_at_its_end(broken): ...
"""


def report_of(folder: Path, text: str, *flags: str) -> dict[str, Any]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    fault(number, ...): lines\n")
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.faults.report",
        "-p",
        "no:cacheprovider",
    )
    words = os.environ | {"PYTHONPATH": str(ROOT), "FTCLI_FAULTS": "complete"}
    file = folder / "report.json"
    subprocess.run(
        [*command, "--faults-report", str(file), *flags], cwd=folder, env=words, check=False
    )
    report: dict[str, Any] = json.loads(file.read_text())
    return report


@pytest.mark.parametrize(
    "flags",
    [(), pytest.param(("-n", "2", "--dist", "load"), marks=pytest.mark.slow)],
    ids=["alone", "workers"],
)
def test_outcomes_and_what_was_seen(flags: tuple[str, ...], tmp_path: Path) -> None:
    report = report_of(tmp_path, TESTS, *flags)
    assert report["broken"] == []
    lines = {line.number: line for line in script.lines_of(report)}
    assert len(lines) == 34
    found = {number: (line.verdict, line.observed) for number, line in lines.items()}
    assert found[1] == ("holds", "1 of 2; complete; 2 of 2")
    verdict, text = found[2]
    assert verdict == "FAILS" and text.startswith("test_it.py::test_that_fails: AssertionError: ")
    assert found[3] == ("not run: needs a card", "–")
    assert found[4] == ("FAILS", "test_it.py::test_that_breaks_at_its_end: OSError: left open")
    assert found[5] == ("not run: no test was collected", "–")
    counts = script.summary(report)
    assert counts.startswith(
        "1 of 34 faults hold. A complete run (make faults): 2 tests passed, 2 "
    )
    assert "2 failed, 1 not run" in counts
    page = script.page(list(lines.values()), counts)
    assert r"arithmetic \| broke" in page


def test_what_cannot_be_collected_is_named(tmp_path: Path) -> None:
    assert report_of(tmp_path, "import nothing_of_the_kind\n")["broken"] == ["test_it.py"]


def test_a_pipe_gets_one_line_per_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = script.lines_of(report_of(tmp_path, TESTS))
    capsys.readouterr()
    script.show(lines)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 34
    assert printed[0].startswith(" 1 holds | injected: kill -9 ")
    assert "| observed: 1 of 2; complete; 2 of 2 | required: " in printed[0]
