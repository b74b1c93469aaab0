"""A run that is killed and resumes ends with exactly the weights of an uninterrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Observed, Recipes

ROOT = Path(__file__).resolve().parents[2]
# Dropout draws from the random generators, and two micro-batches a step accumulate.
TRAINING = {
    "epochs": 1,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": "1e-3",
    "eval_steps": 2,
    "save_steps": 1,
    "neftune_noise_alpha": 5,
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"mode": "lora", "rank": 4, "dropout": 0.1},
    "full": {"mode": "full"},
    "qlora": {"mode": "qlora", "rank": 4, "dropout": 0.1},
    "bottleneck": {"mode": "bottleneck", "bottleneck": 8},
    "prefix-tuning": {"mode": "prefix-tuning", "virtual_tokens": 4, "projection": True},
    "prompt-tuning": {"mode": "prompt-tuning", "virtual_tokens": 4},
}


def killed(folder: Path, kills: int, recipes: list[Path]) -> dict[str, Any]:
    """What tests.faults.moments saw."""
    command = [sys.executable, "-m", "tests.faults.moments", folder, kills, *recipes]
    found = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    values: dict[str, Any] = json.loads(found.stdout)
    return values


@pytest.mark.fault(1)
def test_kill_9_at_one_moment(write_recipe: Recipes, tmp_path: Path) -> None:
    (run,) = killed(tmp_path, 1, [write_recipe(method=METHODS["lora"], training=TRAINING)]).values()
    (moment,) = run["moments"]
    assert (run["code"], moment["code"], moment["killed"]) == (0, 0, True)
    assert moment["weights"] == run["weights"]


@pytest.mark.slow
@pytest.mark.fault(1)
def test_kill_9_at_random_moments(
    write_recipe: Recipes, tmp_path: Path, observed: Observed, complete: bool
) -> None:
    lora, others = (30, 5) if complete else (4, 1)
    recipes = {
        name: write_recipe(name, method=method, training=TRAINING)
        for name, method in METHODS.items()
    }
    found = killed(tmp_path, lora, [recipes.pop("lora")])
    found |= killed(tmp_path, others, list(recipes.values()))
    same = kills = with_checkpoint = halves = 0
    for name, run in found.items():
        assert run["code"] == 0 and run["weights"], name
        for moment in run["moments"]:
            assert moment["code"] == 0, (name, moment)
            kills += moment["killed"]
            same += moment["weights"] == run["weights"]
            with_checkpoint += moment["saved"] > 0
            halves += moment["halves"]
    everything = lora + others * len(recipes)
    observed(
        f"{same} of {everything} resumes give the sha256 of the run that nobody killed "
        f"({kills} died, {with_checkpoint} with checkpoints, {halves} half-written names, "
        f"{len(found)} methods)"
    )
    assert same == everything
