"""Which of `make test`, `make test-all` and `make faults` runs a test, read from its marks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`(?: \((?:make|on a GPU)[^)]*\))?")


def with_tiers(page: str) -> str:
    """The page with the make target after each test that it names."""
    return NAMED.sub(lambda name: f"{_name(name)} ({tier(name[1], name[2])})", page)


def _name(found: re.Match[str]) -> str:
    return f"`{found[1]}::{found[2]}`" if found[2] else f"`{found[1]}`"


def tier(file: str, function: str | None) -> str:
    """The first target that runs it, and `make faults` if that runs it with full counts.

    Raises ValueError for an unknown test.
    """
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    of_file = [ast.unparse(node) for node in tree.body if _sets_marks(node)]
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    tests = [node for node in tests if node.name == (function or node.name)]
    if not tests:
        raise ValueError(f"{file} has no {function}")
    marks = [of_file + [ast.unparse(each) for each in node.decorator_list] for node in tests]
    if all(_has("gpu", each) for each in marks):
        return "on a GPU: make card"
    first = "make test-all" if all(_has("slow", each) for each in marks) else "make test"
    by_fault = any("mark.fault" in mark for each in marks for mark in each)
    return f"{first}, make faults" if by_fault else first


def _sets_marks(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"


def _has(name: str, marks: list[str]) -> bool:
    """Whether the whole test has the mark; marks of single parameters are inside a call."""
    return any(re.search(rf"^[^(]*mark\.{name}\b", mark) for mark in marks)
