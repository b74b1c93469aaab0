"""What is said of a path that leads to no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.artifacts import RunFolder
from ftcli.disk import write_json
from ftcli.errors import FtcliError
from ftcli.stages.opening import run_at


def reason(path: Path) -> str:
    with pytest.raises(FtcliError) as caught:
        run_at(path)
    assert caught.value.code == "run_missing"
    return caught.value.message


def test_a_model_is_told_from_a_run(tmp_path: Path) -> None:
    """As `ftcli generate runs/shop/merged` would have it."""
    run = RunFolder(tmp_path / "shop")
    write_json(run.manifest, {"state": "finished"})
    merged = run.path / "merged"
    merged.mkdir()
    assert reason(merged) == (
        f"{merged} is not a run: it has no run.json; name the folder that ftcli train has filled, "
        "or its recipe"
    )
    (merged / "config.json").write_text("{}")
    assert reason(merged) == (
        f"{merged} is a model, not a run: it has a config.json and no run.json; name the run that "
        "made it, or its recipe"
    )
    assert run_at(run.path) == run
