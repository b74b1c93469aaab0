"""Evaluations as the report reads them, and the verdicts on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftcli.artifacts import RunFolder
from ftcli.stages.report.evaluations import Evaluation, evaluations_in
from ftcli.stages.report.plain import Reading
from ftcli.stages.report.verdict import FaultShare, Verdict, verdict_of
from tests.reported import FORGETTING, evaluation, save_evaluation, side


def read(folder: Path, report: dict[str, Any]) -> Evaluation:
    run = RunFolder(folder)
    save_evaluation(run, report, None)
    return evaluations_in(run.evaluations, Reading(folder))[0]


def judged(folder: Path, faults: FaultShare | None = None, **changes: Any) -> Verdict:
    return verdict_of("finished", "runs/shop", read(folder, evaluation(**changes)), faults)


def lost(**changed: Any) -> dict[str, Any]:
    text = FORGETTING["text"] | {"change_interval": [0.01, 0.4], "words": "forgets"} | changed
    return FORGETTING | {"text": text}


def of_scores(values: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """An evaluation of shares: difference against the base, and its standard error."""
    base = side(dict.fromkeys(values, (0.5, 0.4, 0.6)))
    tuned = side({name: (0.5 + value, 0.4, 0.6) for name, (value, _) in values.items()})
    differences = {}
    for name, (value, error) in values.items():
        low, high = value - 1.96 * error, value + 1.96 * error
        word = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
        differences[name] = {
            "difference": value, "interval": [low, high], "verdict": word, "words": word
        }  # fmt: skip
    kinds = {n: {"label": n, "unit": "share", "better": "higher", "own": True} for n in values}
    return evaluation(
        base=base,
        tuned=tuned,
        scores=kinds,
        differences={"tuned_vs_base": differences},
        forgetting=None,
    )
