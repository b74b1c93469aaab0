"""What a dry run plans beside a run that has ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run


def test_a_fresh_run_takes_over_nothing_of_a_finished_one(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"max_steps": 1, "batch_size": 2, "learning_rate": "1e-3"}
    recipe = str(write_recipe(training=training))
    base = ["--set", "training.precision=fp32", "--set", "training.micro_batch_size=1"]
    assert run(["train", recipe, *base]) == 0
    capsys.readouterr()

    def planned(*flags: str) -> Any:
        assert run(["train", recipe, "--dry-run", "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    old, fresh = planned(), planned("--fresh")
    further = planned("--from", str(tmp_path / "runs" / "tiny"))
    names = ("precision", "optimizer", "micro_batch")
    for told in (fresh, further):
        assert told["run_dir"] == str(tmp_path / "runs" / "tiny-2")
        reasons = {name: told["plan"][name]["reason"] for name in names}
        assert "set in the recipe" not in reasons.values(), reasons
        assert told["plan"]["micro_batch"]["value"] == 2
    assert old["run_dir"] == str(tmp_path / "runs" / "tiny")
    assert (old["plan"]["precision"]["value"], old["plan"]["micro_batch"]["value"]) == ("fp32", 1)
    assert not (tmp_path / "runs" / "tiny-2" / "run.json").exists()
