"""docs/guarantees.md names tests that there are, and the target that runs each."""

from __future__ import annotations

from scripts.tiers import NAMED, ROOT, tier, with_tiers

PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def test_every_promise_names_a_test_that_exists_and_what_runs_it() -> None:
    assert len(NAMED.findall(PAGE)) > 30
    assert with_tiers(PAGE) == PAGE, "make docs"


def test_every_promise_has_its_test() -> None:
    """A paragraph that promises in bold type ends with what proves it."""
    text = PAGE.partition("## No foreign code")[0]
    promises = [part for part in text.split("\n\n") if part.startswith("**")]
    assert len(promises) > 15
    assert [part for part in promises if not NAMED.search(part)] == []


def test_the_target_follows_from_the_marks() -> None:
    here = "tests/faults/test_guarantees.py"
    assert tier(here, "test_every_promise_has_its_test") == "make test"
    kill = tier("tests/faults/test_kills.py", "test_kill_9_at_random_moments")
    assert kill.endswith(", make faults")
    assert tier("tests/test_gpu.py", None) == "on a GPU: make card"
