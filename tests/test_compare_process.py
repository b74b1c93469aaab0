"""A task of a comparison in a process of its own: errors, crashes and signals come through."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from ftcli.console import Terminal
from ftcli.errors import FtcliError, MachineError, Problem, RecipeError, Stopped, UsageError
from ftcli.stages.compare.process import Worker, error_as_json, error_from_json
from ftcli.stages.compare.work import Task

WAITS = "trap 'exit 130' INT\ntrap 'exit 143' TERM\ntouch begun\nwhile :; do sleep 0.02; done\n"


def worker() -> Worker:
    return Worker(one_process=False, reporter=Terminal())


def task(folder: Path, recipe: str = "none.yaml") -> Task:
    return Task("prepare", recipe=str(folder / recipe), folder=str(folder))


@pytest.fixture
def instead_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run a shell script in the place of the worker's python."""
    monkeypatch.chdir(tmp_path)

    def replace(script: str) -> None:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{script}")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return replace


def test_an_error_comes_through_with_its_family_and_place(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: shop\n")
    with pytest.raises(UsageError) as caught:
        worker().run(task(tmp_path, "bad.yaml"))
    assert caught.value.code == "recipe" and "model: is missing" in str(caught.value)
    with pytest.raises(FtcliError, match="no such recipe") as missing:
        worker().run(task(tmp_path))
    assert missing.value.code == "recipe_missing" and missing.value.file is not None


@pytest.mark.parametrize(
    "error",
    [
        MachineError("memory", "one row needs 60 GB", file="shop.yaml", line=3),
        UsageError("flag", "two budgets"),
        FtcliError("recipe_changed", "begun otherwise"),
    ],
)
def test_an_error_is_the_same_on_the_other_side(error: FtcliError) -> None:
    again = error_from_json(error_as_json(error))
    assert type(again) is type(error)
    assert (str(again), again.code, again.file, again.line) == (
        str(error),
        error.code,
        error.file,
        error.line,
    )


def test_a_recipe_error_keeps_its_exit_code() -> None:
    fault = Problem("shop.yaml", 4, "method.rank", "must be at least 1")
    again = error_from_json(error_as_json(RecipeError((fault,))))
    assert again.exit_code == 2 and "rank" in str(again)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -9 $$", "killed (signal 9), as a system does that runs out of memory"),
        ("kill -11 $$", "crashed (signal 11)"),
        ("exit 1", "ended with code 1"),
        ("exit 0", "ended with code 0"),
    ],
)
def test_a_crash_is_an_error_of_its_own_task(
    tmp_path: Path, instead_of_python: Callable[[str], None], script: str, words: str
) -> None:
    instead_of_python(script)
    with pytest.raises(MachineError) as caught:
        worker().run(task(tmp_path))
    assert caught.value.code == "crashed" and words in caught.value.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_task_and_stops_what_would_follow(
    tmp_path: Path, instead_of_python: Callable[[str], None], number: signal.Signals
) -> None:
    instead_of_python(WAITS)
    earlier = signal.getsignal(number)

    def send() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    one = worker()
    with one.signals():
        sender = Thread(target=send)
        sender.start()
        with pytest.raises(Stopped) as caught:
            one.run(task(tmp_path))
        sender.join()
        assert caught.value.exit_code == 128 + number
        (tmp_path / "begun").unlink()
        with pytest.raises(Stopped):
            one.run(task(tmp_path))
        assert not (tmp_path / "begun").exists(), "the next task is not begun"
    assert signal.getsignal(number) is earlier


@pytest.mark.parametrize(("script", "code"), [("exit 130", 130), ("kill -15 $$", 143)])
def test_a_task_that_was_stopped_itself_stops_the_comparison(
    tmp_path: Path, instead_of_python: Callable[[str], None], script: str, code: int
) -> None:
    instead_of_python(script)
    with pytest.raises(Stopped) as caught:
        worker().run(task(tmp_path))
    assert caught.value.exit_code == code


def test_a_module_in_the_users_folder_takes_no_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('the wrong yaml')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FtcliError) as caught:
        worker().run(task(tmp_path))
    assert caught.value.code == "recipe_missing"
