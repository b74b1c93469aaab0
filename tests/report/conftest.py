"""A run with everything that a page may show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.artifacts import RunFolder
from tests.reported import (
    BASE,
    answer,
    evaluation,
    save_evaluation,
    save_run,
    side,
    usual_lines,
)


@pytest.fixture(scope="module", autouse=True)
def pictures() -> None:
    """As they are drawn for everybody."""


@pytest.fixture
def whole(tmp_path: Path) -> RunFolder:
    """A run with everything: two other sides, findings, advice, a second evaluation."""
    run = save_run(tmp_path)
    lines = usual_lines(40)
    for line in lines:
        line["sides"]["prompted"] = answer("A prompted answer.")
        line["facts"] = "facts of their own"
    differences = evaluation()["differences"]
    differences["tuned_vs_prompted"] = differences["tuned_vs_base"]
    prompted = side(BASE, prompt_tokens=812.0)
    save_evaluation(run, evaluation(rows=40, prompted=prompted, differences=differences), lines)
    save_evaluation(run, evaluation(data="other.jsonl", rows=12), None, key="f" * 16)
    advice = {"sentences": ["372 rows are enough for a fixed format."]}
    (run.data / "advice.json").write_text(json.dumps(advice))
    return run
