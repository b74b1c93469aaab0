"""Every line of the table has a test, and docs/faults.md has every line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.faults.table import FAULTS

TESTS = Path(__file__).resolve().parent.parent
PAGE = TESTS.parent / "docs" / "faults.md"


def numbers_marked(file: Path) -> set[int]:
    """Arguments of `pytest.mark.fault(…)`, wherever it stands in a file."""
    return {
        argument.value
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("mark.fault")
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }


def test_the_numbers_are_1_to_34() -> None:
    assert sorted(fault.number for fault in FAULTS) == list(range(1, 35))


def test_every_fault_has_a_test() -> None:
    marked = {number for file in TESTS.rglob("test_*.py") for number in numbers_marked(file)}
    assert marked == {fault.number for fault in FAULTS}


def test_a_number_marks_a_test_of_a_parameter_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "test_one.py"
    file.write_text(
        "pytestmark = pytest.mark.fault(3)\n"
        "@pytest.mark.parametrize('a', [pytest.param(1, marks=pytest.mark.fault(9))])\n"
        "@pytest.mark.fault(1, 2)\n"
        "def test_a(a): ...\n"
    )
    assert numbers_marked(file) == {1, 2, 3, 9}


def test_the_page_has_the_lines_of_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    cells = (re.split(r"(?<!\\) \| ", row) for row in re.findall(r"^\| (\d.*) \|$", text, re.M))
    found = {
        int(row[0]): tuple(re.sub(r"\\(.)", r"\1", cell) for cell in row[1:3]) for row in cells
    }
    assert found == {fault.number: (fault.injected, fault.required) for fault in FAULTS}


def test_lines_are_short_enough_to_be_read() -> None:
    texts = [text for fault in FAULTS for text in (fault.injected, fault.required)]
    assert all(0 < len(text) <= 160 for text in texts)
