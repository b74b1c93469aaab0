"""Exit codes and the shape of errors, for every command alike."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.models import CommandInfo

from ftcli.cli import app, run
from ftcli.config.recipe import Recipe
from ftcli.errors import DataError, Stopped
from ftcli.training.estimate import estimate_memory
from tests.config.shop import SHOP

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "prepare",
    "estimate-vram",
    "train",
    "eval",
    "report",
    "compare",
    "merge",
    "generate",
    "schema",
]
ESTIMATE = ["estimate-vram", "--model", "7b"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.yaml").write_text(SHOP)
    (tmp_path / "shop.jsonl").touch()
    (tmp_path / "bad.yaml").write_text(SHOP.replace("mode: lora", "mode: lora\n  rnak: 3"))
    return tmp_path


# Command line, exit code, code word, beginning of the message, file and line.
FAILURES: list[tuple[list[str], int, str, str, str | None, int | None]] = [
    (["train", "shop.yaml", "--fast"], 2, "usage", "No such option: --fast", None, None),
    (["trian", "shop.yaml"], 2, "usage", "No such command 'trian'", None, None),
    (["train"], 2, "usage", "Missing argument 'RECIPE'", None, None),
    (["estimate-vram", "--rank", "many"], 2, "usage", "Invalid value for '--rank'", None, None),
    (["estimate-vram", "--mode", "lroa"], 2, "usage", "Invalid value for '--mode'", None, None),
    (
        ["train", "shpo.yaml"],
        2,
        "recipe_missing",
        "shpo.yaml: no such recipe; did you mean shop.yaml?",
        "shpo.yaml",
        None,
    ),
    (
        ["prepare", "bad.yaml"],
        2,
        "recipe",
        "bad.yaml:6: method.rnak: unknown key; did you mean rank?",
        "bad.yaml",
        6,
    ),
    (
        ["train", "shop.yaml", "--set", "method.rank=0"],
        2,
        "recipe",
        "--set method.rank=0: method.rank: must be at least 1, found 0",
        "--set method.rank=0",
        None,
    ),
    (["estimate-vram", "--model", "8bb"], 2, "model_unknown", "no model '8bb'", None, None),
    (["estimate-vram"], 2, "usage", "give a RECIPE, or --model", None, None),
    ([*ESTIMATE, "--gpu", "4091"], 2, "gpu_unknown", "no GPU '4091' is known", None, None),
    ([*ESTIMATE, "--set", "method.rank=4"], 2, "flag", "--set changes a recipe", None, None),
    (["estimate-vram", "--model", "./no"], 1, "model_missing", "", None, None),
    *(
        (
            [command, "shop.yaml", "--set", "model.id=../no"],
            1,
            "model_missing",
            "--set model.id=../no: model.id: ",
            "--set model.id=../no",
            None,
        )
        for command in ("prepare", "train", "compare")
    ),
    (["eval", "shop.yaml"], 1, "run_missing", "", None, None),
    (["merge", "."], 1, "run_missing", ". is not a run: it has no run.json", None, None),
    (["generate", "shop.yaml", "Hi"], 1, "run_missing", "", None, None),
    (["report", "shpo"], 1, "run_missing", "shpo: no run and no recipe", "shpo", None),
    (["prepare", "shop.yaml", "--shots", "3"], 2, "flag", "--shots is the number", None, None),
    *(
        (
            ["prepare", "shop.yaml", "--cost-per-hour", price],
            2,
            "usage",
            "Invalid value for '--cost-per-hour': expected a cost of 0 or more, found " + price,
            None,
            None,
        )
        for price in ("inf", "nan", "-1")
    ),
    (["train", "shop.yaml", "--resume", "--fresh"], 2, "flag", "--resume goes with", None, None),
]
every_failure = pytest.mark.parametrize(
    ("command", "exit_code", "code", "beginning", "file", "line"),
    FAILURES,
    ids=[" ".join(command) for command, *_ in FAILURES],
)


@every_failure
def test_a_failure_is_reported_on_stderr_only(
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    exit_code: int,
    code: str,
    beginning: str,
    file: str | None,
    line: int | None,
) -> None:
    assert run(command) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(beginning)
    assert err.strip()
    assert "Traceback" not in err


@every_failure
def test_json_reports_a_failure_on_stdout_too(
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    exit_code: int,
    code: str,
    beginning: str,
    file: str | None,
    line: int | None,
) -> None:
    assert run([*command, "--json"]) == exit_code
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {"error"}
    assert found["error"].keys() == {"code", "message", "file", "line"}
    assert (found["error"]["code"], found["error"]["file"]) == (code, file)
    assert found["error"]["line"] == line
    assert found["error"]["message"].startswith(beginning)
    assert err.rstrip("\n") == found["error"]["message"].rstrip("\n")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["eval", "runs/x", "--fast"], "Try: ftcli eval --help"),
        (["estimate-vram", "--rank", "many"], "Try: ftcli estimate-vram --help"),
        (["estimate-vram", "--cost-per-hour", "-1"], "Try: ftcli estimate-vram --help"),
        (["trian"], "Try: ftcli --help"),
        (["--fast"], "Try: ftcli --help"),
    ],
    ids=" ".join,
)
def test_the_help_of_the_command_is_named(
    capsys: pytest.CaptureFixture[str], command: list[str], hint: str
) -> None:
    assert run(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == hint


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_json_and_debug(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "--json" in out
    assert "--debug" in out
    assert out == _help_of("-h", name, capsys)


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.name)
def test_every_command_has_examples_of_its_own_flags(
    capsys: pytest.CaptureFixture[str], command: CommandInfo
) -> None:
    shown, _, examples = _help_of("--help", str(command.name), capsys).partition("Examples:\n")
    lines = [shlex.split(line) for line in examples.splitlines()]
    assert 1 <= len(lines) <= 2
    for program, name, *words in lines:
        assert (program, name) == ("ftcli", command.name)
        assert all(f" {word} " in shown for word in words if word.startswith("--"))


def _help_of(flag: str, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run([name, flag]) == 0
    return capsys.readouterr().out


def test_the_commands_are_these() -> None:
    assert [command.name for command in app.registered_commands] == COMMANDS


def test_help_goes_to_stdout_and_no_command_is_a_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    shown, err = capsys.readouterr()
    assert err == ""
    assert all(f"\n  {name}" in shown for name in COMMANDS)
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: " in err


def test_debug_shows_the_traceback_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "bad.yaml", "--debug"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith("\nbad.yaml:6: method.rnak: unknown key; did you mean rank?\n")


def raising(error: BaseException) -> Any:
    def stage(*_: object, **__: object) -> None:
        raise error

    return stage


def test_anything_unexpected_is_a_bug_of_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_memory, "estimate_memory", raising(ZeroDivisionError("by zero")))
    assert run(ESTIMATE) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Traceback (most recent call last)")
    *_, last = err.splitlines()
    assert last.startswith("this is a bug of ftcli (ZeroDivisionError('by zero')): ")
    # There is no address to name; what to attach is.
    for words in ("the lines above", "the recipe", "pip list"):
        assert words in last
    assert run([*ESTIMATE, "--json"]) == 70
    found = json.loads(capsys.readouterr().out)
    assert found["error"]["code"] == "bug"
    assert "pip list" in found["error"]["message"]


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("stopped at step 3", 2), 130, "stopped"),
        (Stopped("stopped at step 3", 15), 143, "stopped"),
        (DataError("data_cut", "ends early", file="a.jsonl", line=3), 1, "data_cut"),
    ],
    ids=["ctrl-c", "SIGINT", "SIGTERM", "data"],
)
def test_what_a_stage_raises_decides_the_exit_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_code: int,
    code: str,
) -> None:
    monkeypatch.setattr(estimate_memory, "estimate_memory", raising(error))
    assert run(ESTIMATE) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert run([*ESTIMATE, "--json"]) == exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code


def test_the_command_behaves_as_the_function(here: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "ftcli", "train", str(here / "bad.yaml"), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert json.loads(found.stdout) == {
        "error": {
            "code": "recipe",
            "message": f"{here}/bad.yaml:6: method.rnak: unknown key; did you mean rank?",
            "file": f"{here}/bad.yaml",
            "line": 6,
        }
    }
    assert found.stderr == f"{here}/bad.yaml:6: method.rnak: unknown key; did you mean rank?\n"


@pytest.mark.parametrize("model", ["~nobody-of-this-name/model", "x" * 300])
def test_an_odd_name_is_no_bug(capsys: pytest.CaptureFixture[str], model: str) -> None:
    assert run(["estimate-vram", "--model", model]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = f"{sys.executable} -m ftcli schema | true; echo ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert found.stderr == ""
    assert found.stdout.strip() in ("0", "1")


@pytest.mark.parametrize("command", ["prepare", "train", "eval", "compare", "merge", "generate"])
def test_windows_itself_is_refused_before_anything_is_written(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Recipe.model_fields  # pydantic is there, which would look for the system's files
    before = sorted(here.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        assert run([command, "shop.yaml", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "windows" and "WSL2" in error["message"]
    assert sorted(here.rglob("*")) == before


# What Python has on Unix alone, taken away; Windows opens no folder.
ON_WINDOWS = """
import os, signal, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "O_NOFOLLOW", "fork", "killpg", "sched_getaffinity", "getuid"):
    delattr(os, name)
for name in ("SIGKILL", "SIGALRM", "setitimer"):
    delattr(signal, name)
open_file = os.open

def open_no_folder(path, *rest, **keywords):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return open_file(path, *rest, **keywords)

os.open = open_no_folder
from ftcli.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["schema"],
        ["estimate-vram", "--model", "7b"],
        ["estimate-vram", "shop.yaml", "--fit", "24GB", "--write", "fits.yaml"],
    ],
    ids=" ".join,
)
def test_what_needs_no_training_runs_without_unix(arguments: list[str], here: Path) -> None:
    command = [sys.executable, "-c", ON_WINDOWS, *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_what_measures_memory_is_imported_without_unix() -> None:
    # psutil imports it where the system has it.
    code = "import psutil, sys; sys.modules['resource'] = None; import ftcli.training.preflight"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=True)
