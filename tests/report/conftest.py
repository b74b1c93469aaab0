"""A run with everything that a page may show."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.evaluation.advice.advice import Advice, advice_file
from ftcli.runs.folder import RunFolder
from tests.reported import (
    answer,
    evaluation,
    prompted,
    save_evaluation,
    save_run,
    usual_lines,
)


@pytest.fixture(scope="module", autouse=True)
def pictures() -> None:
    """Draw real pictures."""


@pytest.fixture
def whole(tmp_path: Path) -> RunFolder:
    """A run with everything: all sides, findings, rows to read, advice, a second evaluation."""
    run = save_run(tmp_path)
    lines = []
    for line in usual_lines(40):
        sides = {**line.sides, "prompted": answer("A prompted answer.")}
        lines.append(line.model_copy(update={"sides": sides, "facts": "facts of their own"}))
    result = evaluation(
        rows=40,
        scores=prompted("better"),
        samples=tuple(lines[:5]),
        instruction="prompt.txt",
        examples=2,
    )
    save_evaluation(run, result, lines)
    save_evaluation(run, evaluation(key="f" * 16, data="other.jsonl", rows=12))
    sentences = ("372 rows are enough for a fixed format.",)
    Advice(fingerprint="0123abcd", rows=372, sentences=sentences).write(advice_file(run.data))
    return run
