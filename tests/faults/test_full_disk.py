"""A full disk: before a training, and at any write of a save."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.runs.checkpoints import latest_valid
from ftcli.runs.folder import RunFolder
from tests.faults.disk_states import FailingCall
from tests.faults.test_saves import METHOD, TRAINING, Observed, Write, train

# Functions of Python, torch and safetensors that write, sync or rename.
WRITES = {"write", "fsync", "open", "replace", "rename", "mkdir", "serialize_file", "chmod"}


@pytest.mark.slow
@pytest.mark.fault(5)
def test_a_save_that_fails_at_any_write_leaves_the_older_ones_whole(
    write_recipe: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
    complete: bool,
) -> None:
    """Like SQLite's tests: let the n-th call fail, for every n (for every ninth in short)."""
    from ftcli.training.trainer import FtcliTrainer

    every = 1 if complete else 9

    recipe = write_recipe(method=METHOD, training=TRAINING)
    folder = RunFolder(tmp_path / "runs" / "tiny")
    original, failed = FtcliTrainer._save_checkpoint, Counter[str]()

    def save(self: Any, model: Any, trial: Any) -> None:
        original(self, model, trial)
        if self.state.global_step != 3:
            return
        run_id = folder.read_manifest()["run_id"]
        self.state.global_step = 4  # a further step, so that the name is free
        for number in range(0, 10_000, every):
            failing = FailingCall(number, WRITES, OSError(errno.ENOSPC, "No space left"))
            sys.setprofile(failing)
            try:
                original(self, model, trial)
                failed["taken in its stride"] += failing.failed
            except OSError:
                failed["an error"] += 1
            finally:
                sys.setprofile(None)
            if not failing.failed:
                break
            found = latest_valid(folder, run_id)
            assert found.checkpoint is not None and not found.skipped
            assert not list(folder.checkpoints.glob(".tmp-step-*")), "half a checkpoint"
        self.state.global_step = 3
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(FtcliTrainer, "_save_checkpoint", save)
        assert train(recipe) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert f"the disk of {folder.path} is full" in error
    assert f"Resume: ftcli train {recipe.name}" in error
    observed(
        f"{failed.total()} of {failed.total()} failed calls of a save leave only whole checkpoints"
    )
    assert failed["an error"] > (60 if complete else 6)


def test_disk_space_is_checked_before_the_training(
    write_recipe: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    assert train(write_recipe(method=METHOD, training=TRAINING), "--json") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "disk_full"
    assert "this run with its checkpoints needs 432 KiB on the disk of" in error["message"]
    assert not (tmp_path / "runs" / "tiny" / "run.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, where the system lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (it needs root)")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.fault(5)
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_disk_that_is_full_already(
    command: str,
    small_disk: Path,
    write_recipe: Write,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    (small_disk / "filler").write_bytes(b"0" * shutil.disk_usage(small_disk).free)
    assert run([command, str(write_recipe(output=str(small_disk / "run"))), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "disk_full"
    assert " is full" in error["message"] and "make room" in error["message"]
    observed(f"{command} with nothing free: one line, what to do, exit 1")


@pytest.mark.fault(5)
def test_a_disk_that_is_really_full(
    small_disk: Path,
    write_recipe: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    from ftcli.runs import atomic
    from tests.commands.test_training import stop_at

    recipe = write_recipe(method=METHOD, training=TRAINING, output=str(small_disk / "run"))
    folder = RunFolder(small_disk / "run")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(recipe) == 130
    steps = folder.steps_saved()
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        file.write(b"0" * (shutil.disk_usage(small_disk).free - 60_000))
    capsys.readouterr()
    assert train(recipe, "--json") == 1
    before = json.loads(capsys.readouterr().out)["error"]
    assert before["code"] == "disk_full" and "needs" in before["message"]
    with monkeypatch.context() as patch:  # another program fills the disk in the meantime
        patch.setattr(atomic, "free_bytes", lambda _: 10**12)
        assert train(recipe, "--json") == 1
    during = json.loads(capsys.readouterr().out)["error"]
    assert during["code"] == "disk_full" and "is full" in during["message"]
    assert folder.steps_saved() == steps and not list(folder.path.rglob(".tmp-step-*"))
    filler.unlink()
    assert train(recipe) == 0
    observed("2 MB: refused before step 1, one line in a save, older checkpoints whole, resumes")
