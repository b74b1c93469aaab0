"""What a dry run plans next to a run that has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from tests.conftest import Capture, Patch, Recipes


def test_a_fresh_run_takes_over_nothing_of_a_finished_one(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    training = {"max_steps": 1, "batch_size": 2, "learning_rate": "1e-3"}
    recipe = str(write_recipe(training=training))
    base = ["--set", "training.precision=fp32", "--set", "training.micro_batch_size=1"]
    assert run(["train", recipe, *base, "--dry-run"]) == 0
    assert "\ntime   not known: no run of this recipe" in capsys.readouterr().out
    assert run(["train", recipe, *base]) == 0
    capsys.readouterr()

    def planned(*flags: str) -> Any:
        assert run(["train", recipe, "--dry-run", "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    assert run(["train", recipe, *base, "--fresh", "--dry-run"]) == 0
    assert "\ntime   about " in capsys.readouterr().out
    old, fresh = planned(), planned("--fresh")
    further = planned("--from", str(tmp_path / "runs" / "tiny"))
    keys = ("training.precision", "training.optimizer", "training.micro_batch_size")
    for printed in (fresh, further):
        assert printed["run_dir"] == str(tmp_path / "runs" / "tiny-2")
        reasons = {key: printed["plan"]["reasons"][key] for key in keys}
        assert "set in the recipe" not in reasons.values(), reasons
        assert printed["plan"]["training"]["micro_batch_size"] == 2
    assert old["run_dir"] == str(tmp_path / "runs" / "tiny")
    kept = old["plan"]["training"]
    assert (kept["precision"], kept["micro_batch_size"]) == ("fp32", 1)
    assert not (tmp_path / "runs" / "tiny-2").exists()


def tree(folder: Path) -> dict[str, tuple[int, bytes] | None]:
    """Every path below a folder, with date and bytes of the files."""
    return {
        str(path.relative_to(folder)): (
            (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        )
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("flags", [(), ("--set", "output=deep/runs/tiny")])
def test_a_fresh_dry_run_leaves_the_tree_as_it_was(
    write_recipe: Recipes,
    tmp_path: Path,
    rows_file: Path,
    monkeypatch: Patch,
    capsys: Capture,
    flags: tuple[str, ...],
) -> None:
    """Where rows were prepared from other data too, and where it fails midway."""
    from ftcli.training.plan import decide

    rows_file.write_text(rows_file.read_text() + '{"prompt": "a", "completion": ""}\n' * 4)
    recipe = str(write_recipe(training={"max_steps": 1, "batch_size": 2}))
    assert run(["prepare", recipe, "--set", "data.max_length=200"]) == 0
    before = tree(tmp_path)
    capsys.readouterr()
    assert run(["train", recipe, "--fresh", "--dry-run", *flags]) == 0
    assert tree(tmp_path) == before
    said = capsys.readouterr().err
    assert "4 of 52 rows are not used" in said and ".tmp-" not in said

    def fail(*_: object) -> None:
        raise OSError("no plan")

    monkeypatch.setattr(decide, "make_plan", fail)
    assert run(["train", recipe, "--fresh", "--dry-run", *flags]) == 1
    assert tree(tmp_path) == before
