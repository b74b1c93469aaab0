"""A disk that is full before a command has written anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.faults.test_saves import small_disk

__all__ = ["small_disk"]


@pytest.mark.fault(5)
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_disk_that_is_full_already(
    command: str,
    small_disk: Path,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    observed: Callable[[str], None],
) -> None:
    (small_disk / "filler").write_bytes(b"0" * shutil.disk_usage(small_disk).free)
    recipe = write_recipe(output=str(small_disk / "run"))
    assert run([command, str(recipe), "--json"]) == 1
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["code"] == "disk_full"
    assert " is full" in error["message"] and "make room" in error["message"]
    assert "Traceback" not in err
    observed(f"{command} with nothing free: one line, what to do, exit 1")
