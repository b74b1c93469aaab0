"""How often chance alone gives a verdict: base and tuned swapped row by row on recorded scores.

`recorded_scores.json`: numerator and denominator of each row of base and tuned model, of a real
evaluation of the demo on 60 held-out rows, and of its sets of general ability.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ftcli.evaluation import statistics
from ftcli.evaluation.score_table import MeasuredScore, score_rows
from ftcli.evaluation.scorers.scorer import ScoreKind
from ftcli.evaluation.statistics import Counts

RECORDED = json.loads(Path(__file__).with_name("recorded_scores.json").read_text())
DRAWS = 500


def measured(name: str, kept: dict[str, Any], swap: random.Random | None) -> MeasuredScore:
    base, tuned = [], []
    for one, other in zip(kept["base"], kept["tuned"], strict=True):
        pair = (other, one) if swap is not None and swap.random() < 0.5 else (one, other)
        base.append(pair[0])
        tuned.append(pair[1])
    row = MeasuredScore(name, ScoreKind(name, "value", kept["better"]))
    for side, values in (("base", base), ("tuned", tuned)):
        row.sides[side] = Counts(*zip(*values, strict=True))  # type: ignore[index, arg-type]
    return row


def verdicts(swap: random.Random | None, names: list[str]) -> list[str | None]:
    rows = [measured(name, RECORDED[name], swap) for name in names]
    found, _ = score_rows(rows, (), None)
    return [row.tuned_vs_base.verdict for row in found if row.tuned_vs_base is not None]


def test_the_real_difference_is_found() -> None:
    assert verdicts(None, ["format_rate", "stop_rate", "loss"]) == ["better"] * 3


def test_at_most_one_in_twenty_evaluations_of_nothing_has_a_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Fewer swaps for each p value than in use: they decide nothing about its mean.
    monkeypatch.setattr(statistics, "PERMUTATIONS", 999)
    # Intervals are no part of a verdict.
    for name in ("wilson", "ratio", "newcombe", "paired_ratio"):
        monkeypatch.setattr(statistics, f"{name}_interval", lambda *_: (0.0, 0.0))
    swap = random.Random(20)
    names = list(RECORDED)
    assert len(names) >= 9
    false = sum({"better", "worse"} & set(verdicts(swap, names)) != set() for _ in range(DRAWS))
    assert false <= 0.05 * DRAWS
