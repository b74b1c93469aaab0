"""`ftcli report`, and the report at the end of a training, which it may never spoil."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ftcli.cli import run as ftcli
from ftcli.runs.folder import RunFolder
from tests.reported import evaluation, of_truth, save_evaluation, save_run, score

Write = Callable[..., Path]


def test_the_command_writes_page_and_card_and_says_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(**of_truth(score(0.9, 0.83, 0.94))))
    assert ftcli(["report", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        "run_dir", "report", "card", "verdict", "headline", "words", "reasons"
    ]  # fmt: skip
    assert found["report"] == str(run.report) and Path(found["card"]) == run.card
    assert (found["verdict"], found["headline"]) == ("ready", "Ready")
    assert run.report.is_file() and run.card.is_file()
    assert ftcli(["report", str(run.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Ready" and lines[-1] == f"report  {run.report}"


@pytest.mark.parametrize("columns", [60, 80])
def test_its_sentences_are_as_wide_as_the_terminal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(rows_in_validation=120))
    monkeypatch.setenv("COLUMNS", str(columns))
    assert ftcli(["report", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ftcli(["report", str(run.path)]) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert max(map(len, lines)) <= columns
    said = " ".join(" ".join(lines).split())
    assert said == " - ".join([f"{found['headline']} {found['words']}", *found["reasons"]])
    assert found["reasons"]


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ftcli(["report", str(tmp_path)]) == 1
    assert "is not a run: it has no run.json" in capsys.readouterr().err
    assert ftcli(["report"]) == 2


def test_the_page_is_opened_where_there_is_a_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    run = save_run(tmp_path)
    assert ftcli(["report", str(run.path), "--open"]) == 0
    assert opened == [run.report.as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    assert ftcli(["report", str(run.path), "--open"]) == 0
    assert "report.html yourself" in capsys.readouterr().err


def test_unreadable_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_run(tmp_path)
    run.plan.write_text("{")
    assert ftcli(["report", str(run.path)]) == 0
    found = capsys.readouterr()
    assert "warning: plan.json: not as ftcli" in found.err and "train again" in found.err
    lines = found.out.splitlines()  # a command stands alone, to be pasted
    assert lines[:3] == [
        "Not evaluated yet",
        "Whether it is better than its base was not measured:",
        f"  ftcli eval {run.path}",
    ]
    run.manifest.write_text("{")
    assert ftcli(["report", str(run.path)]) == 1


def test_a_training_ends_with_its_page(
    write_recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    assert ftcli(["train", str(recipe), "--json"]) == 0
    run = RunFolder(Path(json.loads(capsys.readouterr().out)["run_dir"]))
    page = run.report.read_text(encoding="utf-8")
    assert "Not evaluated yet" in page and "ftcli eval runs/tiny" in page
    assert "<strong>Speed</strong> Speed " in page  # of the steps, as the training timed them
    steps = [json.loads(line) for line in run.speed.read_text().splitlines()]
    assert [each["step"] for each in steps] == list(range(1, 9))
    assert all(each["tokens"] > 0 and each["seconds"] >= 0 for each in steps)
    assert str(recipe.parent) not in page
    assert run.card.read_text(encoding="utf-8").startswith("---\nlibrary_name: peft\n")


def test_a_report_that_cannot_be_written_is_only_a_warning(
    write_recipe: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no picture today")

    monkeypatch.setattr("ftcli.report.page.page", broken)
    assert ftcli(["train", str(write_recipe()), "--json"]) == 0
    found = capsys.readouterr()
    run = RunFolder(Path(json.loads(found.out)["run_dir"]))
    assert run.state == "finished" and not run.report.exists()
    assert (
        "warning: the report could not be written (RuntimeError('no picture today'))" in found.err
    )
    assert "ftcli report" in found.err and "Traceback" not in found.err
