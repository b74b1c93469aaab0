"""docs/guarantees.md names tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_promise_names_a_test_that_exists() -> None:
    named = NAMED.findall(PAGE.read_text())
    assert len(named) > 30
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in functions, f"{file}::{function}"


def test_every_promise_has_its_test() -> None:
    """A paragraph that promises in bold type ends with what proves it."""
    text = PAGE.read_text().partition("## Nobody is let in")[0]
    promises = [part for part in text.split("\n\n") if part.startswith("**")]
    assert len(promises) > 15
    assert [part for part in promises if not NAMED.search(part)] == []
