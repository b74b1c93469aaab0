"""`ftcli compare` on a tiny random model, from the recipe to the verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from jsonschema import validate

from ftcli.cli import run
from ftcli.errors import MachineError, Stopped
from ftcli.evaluation.compare.cells import METHODS
from ftcli.evaluation.compare.cells import ask as ask_ftcli
from ftcli.runs.atomic import sha256_file
from ftcli.runs.results import CompareResult
from tests.compared import in_this_process
from tests.conftest import save_recipe, save_rows, save_tiny_model
from tests.json_shapes import SHAPES

Recipe = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
SECTIONS: dict[str, Any] = {
    "data": {"train": "rows.jsonl", "validation": 8, "test": 12, "max_length": 256},
    "generation": {"max_new_tokens": 4},
}


@pytest.fixture
def recipe(write_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_this_process(monkeypatch)
    return write_recipe(**SECTIONS)


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> CompareResult:
    """All six methods, compared once for the tests of what has come of it."""
    folder = tmp_path_factory.mktemp("six")
    save_rows(folder)
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        assert compare(save_recipe(folder, tiny_model, "six", **SECTIONS), "--steps", "3") == 0
    return CompareResult.read(folder / "runs/six-compare/compare.json")


def compare(recipe: Path, *flags: str) -> int:
    """With a short general text where none is given."""
    if "--general-text" not in flags:
        text = recipe.with_name("text.txt")
        text.write_text("The sea was calm.\n\nNobody on board spoke a word.\n")
        flags = (*flags, "--general-text", str(text))
    return run(["compare", str(recipe), *flags])


def ask(capsys: Capture, recipe: Path, *flags: str) -> CompareResult:
    capsys.readouterr()
    code = compare(recipe, *flags, "--json")
    out, err = capsys.readouterr()
    assert code == 0, err
    validate(json.loads(out), SHAPES["compare"])
    found = CompareResult.model_validate_json(out)
    assert CompareResult.read(Path(found.run_dir) / "compare.json") == found
    return found


def refused(capsys: Capture, recipe: Path, *flags: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = compare(recipe, *flags, "--json")
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    validate(json.loads(out), SHAPES["error"])
    error = json.loads(out)["error"]
    return code, error["code"], error["message"]


def changed_files(folder: Path, before: dict[Path, int]) -> set[str]:
    return {path.name for path, stamp in stamps(folder).items() if before.get(path) != stamp}


def stamps(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_all_six_methods_are_in_the_table_the_page_and_the_picture(six: CompareResult) -> None:
    cells = {cell.name: cell for cell in six.finished}
    assert tuple(cells) == METHODS
    trained = {name: cell.trainable_parameters for name, cell in cells.items()}
    assert trained["full"] == cells["full"].total_parameters
    assert trained["lora"] == trained["qlora"] and len(set(trained.values())) == 5
    assert cells["lora"].learning_rate == cells["qlora"].learning_rate == 1e-3
    assert cells["full"].learning_rate == 2e-5
    text = (Path(six.run_dir) / "compare.md").read_text()
    assert all(f"| {name} | " in text for name in ("base", *METHODS)) and six.verdict in text
    assert (Path(six.run_dir) / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_cells_share_rows_and_base_and_their_scores_are_those_of_eval(
    six: CompareResult, capsys: Capture
) -> None:
    folder = Path(six.run_dir)
    assert len({(folder / n / "data/train.arrow").stat().st_ino for n in METHODS}) == 1
    base_of_16_bits = {
        file.name: file.read_text()
        for name in METHODS
        if name != "qlora"
        for file in (folder / name / "eval/work").glob("base-*.jsonl")
    }
    assert len(base_of_16_bits) == 3, "rows, text and instructions, copied from the first cell"
    capsys.readouterr()
    flags = ["--general-text", str(folder.parents[1] / "text.txt"), "--json"]
    assert run(["eval", str(folder / "lora.yaml"), *flags]) == 0
    scores = json.loads(capsys.readouterr().out)
    [lora] = [cell for cell in six.finished if cell.name == "lora"]
    assert scores["key"] == lora.evaluation and six.rows == lora.scores["loss"].n == 12
    for side, found in (("base", six.base.scores), ("tuned", lora.scores)):
        assert found["loss"].value == scores[side]["loss"]
        assert found["stop_rate"].value == scores[side]["stop_rate"]
        [text] = [row for row in scores["forgetting"] if row["name"] == "general_text"]
        assert found["general_text"].value == text[side]["value"]


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "runs/tiny-compare/lora"
    first = ask(capsys, recipe, "--methods", "lora", "--steps", "3")
    before = stamps(folder)
    both = ask(capsys, recipe, "--methods", "lora,full", "--steps", "3")
    assert changed_files(folder, before) <= {"last", "report.html", "README.md"}
    assert both.finished[0].scores == first.finished[0].scores
    capsys.readouterr()
    assert compare(recipe, "--methods", "lora,full", "--steps", "3") == 0
    out, err = capsys.readouterr()
    assert "full (2 of 2)" in err and "step " not in err and both.verdict in " ".join(out.split())


@pytest.mark.slow
def test_the_base_of_four_bit_methods_alone_is_held_as_they_hold_it(
    recipe: Path, capsys: Capture
) -> None:
    assert ask(capsys, recipe, "--methods", "qlora", "--steps", "2").base.four_bit
    assert not ask(capsys, recipe, "--methods", "qlora,lora", "--steps", "2").base.four_bit


@pytest.mark.slow
def test_other_scoring_is_another_evaluation_and_no_other_training(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    flags = ("--methods", "lora", "--steps", "3")
    first = ask(capsys, recipe, *flags)
    before = stamps(tmp_path / "runs/tiny-compare/lora/adapter")
    form = ("--set", "eval.format={type: regex, pattern: '.*'}", "--limit", "11")
    second = ask(capsys, recipe, *flags, *form)
    assert second.rows == 11 and "format_rate" in second.finished[0].scores
    assert "format_rate" not in first.finished[0].scores
    assert not changed_files(tmp_path / "runs/tiny-compare/lora/adapter", before)


@pytest.mark.slow
def test_a_comparison_is_never_mixed_with_another(
    recipe: Path, rows_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    flags = ("--methods", "full,lora", "--steps", "2")
    ask(capsys, recipe, "--methods", "lora", "--steps", "2")
    code, name, message = refused(capsys, recipe, "--methods", "full,lora", "--steps", "3")
    assert (code, name) == (1, "recipe_changed")
    assert "training.max_steps: 2 → 3" in message and message.endswith("--fresh")
    assert not (tmp_path / "runs/tiny-compare/full/run.json").exists(), "before any training"
    assert "method.rank: 4 → 8" in refused(capsys, recipe, *flags, "--set", "method.rank=8")[2]
    lines = rows_file.read_text().splitlines(keepends=True)
    rows_file.write_text("".join(lines[:-1]))
    code, name, message = refused(capsys, recipe, *flags)
    assert (code, name) == (1, "recipe_changed") and "rows of data.train: " in message
    fresh = ask(capsys, recipe, "--methods", "lora", "--steps", "2", "--fresh")
    assert fresh.run_dir == str(tmp_path / "runs/tiny-compare-2")
    assert ask(capsys, recipe, "--methods", "lora", "--steps", "2").run_dir == fresh.run_dir


@pytest.mark.slow
def test_another_base_under_the_same_name_is_refused(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = save_tiny_model(tmp_path / "base")
    flags = ("--methods", "lora", "--steps", "2", "--set", f"model.id={model}")
    ask(capsys, recipe, *flags)
    weights = load_file(model / "model.safetensors")
    moved = {name: (w + torch.tensor(0.01)).contiguous() for name, w in weights.items()}
    save_file(moved, model / "model.safetensors", metadata={"format": "pt"})
    code, name, message = refused(capsys, recipe, *flags)
    assert (code, name) == (1, "recipe_changed") and "weights of the base: " in message


def test_what_one_method_cannot_do_is_a_row_with_the_reason(recipe: Path, capsys: Capture) -> None:
    flags = ("--steps", "2", "--set", "model.dtype=fp32")
    found = ask(capsys, recipe, "--methods", "full,lora", *flags)
    [full], [lora] = found.failed, found.finished
    assert (full.name, lora.name) == ("full", "lora") and "training.precision" in full.reason
    assert compare(recipe, "--methods", "full,lora", *flags) == 0
    out, err = capsys.readouterr()
    assert "  full failed: " in out and "warning: full failed" in err
    code, name, message = refused(capsys, recipe, "--methods", "full", *flags)
    assert (code, name) == (1, "compare_failed")
    assert f"none of the methods could be trained:\n  full: {full.reason}" in message


@pytest.mark.slow
def test_validation_chooses_the_rate_of_each_method(recipe: Path, capsys: Capture) -> None:
    flags = ("--methods", "lora,full", "--steps", "3", "--learning-rates", "1e-2,1e-5")
    found = ask(capsys, recipe, *flags)
    names = [cell.name for cell in found.finished]
    assert names == ["lora-1e-2", "lora-1e-5", "full-1e-2", "full-1e-5"]
    for method in ("lora", "full"):
        cells = [cell for cell in found.finished if cell.method == method]
        best = min(cells, key=lambda cell: cell.validation_loss or 0.0)
        assert [cell.name for cell in cells if cell.chosen] == [best.name]


def test_a_stopped_comparison_says_how_to_go_on_and_ends_as_an_unstopped_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from ftcli.training.callbacks import ScheduleCallback

    original = ScheduleCallback.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any, **rest: Any) -> None:
        original(self, args, state, control, logs=logs, **rest)
        if self.plan.estimated.mode == "full" and state.global_step == 2 and "loss" in logs:
            os.kill(os.getpid(), signal.SIGINT)

    flags = ("--methods", "lora,full", "--steps", "6", "--set", "training.seed=7")
    with monkeypatch.context() as patch:
        patch.setattr(ScheduleCallback, "on_log", on_log)
        assert compare(recipe, *flags) == 130
    err = capsys.readouterr().err
    command = f"--steps 6 --general-text {tmp_path}/text.txt --set training.seed=7"
    assert err.rstrip().endswith(f"tiny.yaml --methods lora,full {command}")
    folder = tmp_path / "runs/tiny-compare"
    assert json.loads((folder / "full/run.json").read_text())["state"] == "stopped"
    resumed = ask(capsys, recipe, *flags)
    fresh = ask(capsys, recipe, *flags, "--fresh")
    for name in ("lora/adapter/adapter_model.safetensors", "full/model/model.safetensors"):
        assert sha256_file(folder / name) == sha256_file(Path(fresh.run_dir) / name)
    assert [c.scores for c in resumed.finished] == [c.scores for c in fresh.finished]
    assert resumed.seed == 7 and resumed.verdict == fresh.verdict


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--methods", "lroa"], "method_unknown", "no method 'lroa'; did you mean lora?"),
        (["--methods", ","], "flag", "--methods names no method"),
        (["--learning-rates", "fast"], "flag", "expected numbers, e.g. 1e-4,1e-3"),
        (["--learning-rates", "3"], "recipe", "must be below 1"),
        (["--learning-rates", "0"], "recipe", "must be above 0"),
        (["--set", "data.test=0", "--set", "data.validation=0"], "recipe", "rows that no method"),
        (
            ["--learning-rates", "1e-3", "--set", "data.validation=0"],
            "flag",
            "chosen by validation rows",
        ),
    ],
)
def test_what_the_flags_alone_prove_wrong_is_refused_before_any_work(
    recipe: Path, tmp_path: Path, capsys: Capture, flags: list[str], code: str, words: str
) -> None:
    exit_code, name, message = refused(capsys, recipe, *flags)
    assert (exit_code, name) == (2, code) and words in message
    assert not (tmp_path / "runs").exists()


def test_a_fault_of_model_or_data_is_one_error(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert refused(capsys, recipe, "--set", "model.id=../no")[:2] == (1, "model_missing")
    code, _, message = refused(capsys, recipe, "--general-text", str(tmp_path / "none.txt"))
    assert code == 1 and message.endswith("none.txt: no such file")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": ""}\n')
    code, name, message = refused(capsys, recipe)
    assert (code, name) == (1, "data_empty") and "completion is empty" in message


@pytest.mark.slow
def test_each_command_has_a_process_of_its_own(
    write_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    (tmp_path / "yaml.py").write_text("raise SystemExit('a module of the user')\n")
    command = [sys.executable, "-P", "-m", "ftcli", "compare", str(write_recipe(**SECTIONS))]
    done = subprocess.run(
        [*command, "--methods", "lora", "--steps", "2", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    validate(json.loads(done.stdout), SHAPES["compare"])
    assert "lora (1 of 1)" in done.stderr


# Commands in processes of their own


@pytest.fixture
def instead_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run a shell script in the place of python."""
    monkeypatch.chdir(tmp_path)

    def replace(script: str) -> None:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return replace


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -9 $$", "killed (signal 9): the system may have run out of memory"),
        ("kill -11 $$", "crashed (signal 11)"),
        ("exit 1", "ended with code 1"),
        ("exit 2", "ended with code 2"),
    ],
)
def test_a_crash_is_an_error_of_its_own_command(
    instead_of_python: Callable[[str], None], script: str, words: str
) -> None:
    instead_of_python(script)
    with pytest.raises(MachineError) as caught:
        ask_ftcli("train")
    assert caught.value.code == "crashed" and words in caught.value.message


@pytest.mark.parametrize(
    ("number", "trap"),
    [
        (signal.SIGINT, "exit 130"),
        (signal.SIGTERM, "exit 143"),
        (signal.SIGINT, "echo {}; exit 0"),  # it was ending well: the next is not begun
    ],
)
def test_a_signal_reaches_the_command_which_is_the_last_one(
    tmp_path: Path,
    instead_of_python: Callable[[str], None],
    number: signal.Signals,
    trap: str,
) -> None:
    instead_of_python(f"trap '{trap}' {number.name[3:]}; touch begun; while :; do sleep 0.02; done")
    earlier = signal.getsignal(number)

    def send() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = Thread(target=send)
    sender.start()
    with pytest.raises(Stopped) as caught:
        ask_ftcli("train")
    sender.join()
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is earlier
