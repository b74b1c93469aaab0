"""`ftcli eval`: losses and answers are stored, resumed and reused, and the same again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.console import Terminal
from ftcli.evaluation.eval_rows import EvalOptions
from ftcli.evaluation.model_outputs import ModelOutputs
from ftcli.evaluation.run_evaluation import evaluate_run
from ftcli.runs.results import EvalResult
from tests.commands.test_end_to_end import ask
from tests.conftest import save_recipe
from tests.evaluated import rows_of, unevaluated
from tests.tiers import tiers


def test_answers_do_not_depend_on_the_batch_size(
    eval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(batch_size: int) -> list[tuple[str, str]]:
        found = ask(capsys, "eval", eval_run, "--batch-size", batch_size, "--no-forgetting")
        rows = rows_of(eval_run, found)
        return [tuple(row["sides"][side]["text"] for side in ("base", "tuned")) for row in rows]

    one = answers(1)
    assert len({text for row in one for text in row}) > 2  # not all equal
    assert answers(8) == one
    assert answers(3) == one


def test_sampled_answers_are_the_same_again(
    unevaluated_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--set", "generation.temperature=2.0", "--no-base", "--no-forgetting"]

    def texts(*more: object) -> list[str]:
        found = ask(capsys, "eval", unevaluated_run, *flags, *more)
        return [row["sides"]["tuned"]["text"] for row in rows_of(unevaluated_run, found)]

    once = texts()
    shutil.rmtree(unevaluated_run / "eval")
    assert texts() == once
    assert texts("--set", "training.seed=7") != once


@pytest.mark.parametrize("kept_lines", [1, 3])
def test_a_stopped_evaluation_resumes(
    unevaluated_run: Path, monkeypatch: pytest.MonkeyPatch, kept_lines: int
) -> None:
    asked = EvalOptions(with_base=False, forgetting=False, batch_size=2)
    whole = evaluate_run(unevaluated_run, (), asked, Terminal())
    file = next((unevaluated_run / "eval" / "work").iterdir())
    lines = file.read_text().splitlines(keepends=True)
    for other in (unevaluated_run / "eval").glob("*.json"):
        other.unlink()
    file.write_text("".join(lines[:kept_lines]) + '{"losses": [[0, 1')
    added: list[int] = []
    monkeypatch.setattr(ModelOutputs, "add", _counting(ModelOutputs.add, added))
    again = evaluate_run(unevaluated_run, (), asked, Terminal())
    assert not again.stored
    assert len(added) == len(lines) - kept_lines
    assert _timeless(again.result) == _timeless(whole.result)


def _timeless(result: EvalResult) -> EvalResult:
    calls = {
        side: call.model_copy(update={"tokens_per_second": None})
        for side, call in result.calls.items()
    }
    return result.model_copy(update={"calls": calls, "finished": ""})


def test_ctrl_c_keeps_what_was_answered(
    unevaluated_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftcli.inference import generation

    real, calls = generation.answer_batch, []

    def second_time_interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(generation, "answer_batch", second_time_interrupted)
    flags = ["eval", str(unevaluated_run), "--batch-size", "4", "--no-base"]
    assert run(flags) == 130
    assert "the same command resumes" in capsys.readouterr().err
    work = "".join(file.read_text() for file in (unevaluated_run / "eval" / "work").iterdir())
    assert work.count('"answers"') == 1
    assert run(flags) == 0
    assert len(calls) == 3  # one batch was kept, one was cut short, one was left


def test_an_answer_with_a_line_separator_is_kept(tmp_path: Path) -> None:
    from ftcli.inference.generation import Answer

    file = tmp_path / "kept.jsonl"
    strange = [Answer("a\u2028b\x85c\u2029", 3, True), Answer('d\n"e', 2, False)]
    rows = [[row, each.text, each.tokens, each.stopped] for row, each in enumerate(strange)]
    ModelOutputs(file).add({"answers": rows, "seconds": 0.5})
    with file.open("ab") as cut:
        cut.write('{"losses": [[0, "é'.encode()[:-1])
    ModelOutputs(file).add({"losses": [[0, 1.5, 3]]})
    again = ModelOutputs(file)
    assert again.answers == strange and again.losses_by_row == {0: (1.5, 3)}
    assert again.seconds == 0.5


def test_another_format_is_scored_without_a_model(
    unevaluated_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.inference import open_model as engine

    asked = EvalOptions(limit=4, forgetting=False)
    first = evaluate_run(unevaluated_run, (), asked, Terminal())

    def never(*_: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(engine, "load_base_model", never)
    monkeypatch.setattr(engine, "load_tuned_model", never)
    overrides = ['eval.format={type: regex, pattern: "[^#]*"}']
    second = evaluate_run(unevaluated_run, overrides, asked, Terminal())
    assert second.result.row("format_rate") and not first.result.row("format_rate")
    losses = [each.result.row("loss") for each in (first, second)]
    assert losses[0] is not None and losses[0] == losses[1]


def test_outputs_of_the_base_are_reused_from_a_sibling_run(
    eval_run: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ftcli.inference import open_model as engine

    lora = tmp_path / "runs" / "tiny"
    shutil.copytree(eval_run, lora)
    unevaluated(lora)
    shutil.copy(eval_run.parents[1] / "rows.jsonl", tmp_path)
    training = {"batch_size": 4, "learning_rate": "1e-3", "precision": "fp32", "max_steps": 2}
    full = save_recipe(
        tmp_path, tiny_model, name="full", method={"mode": "full"}, training=training
    )
    assert run(["train", str(full)]) == 0
    instruction = tmp_path / "instructions.txt"
    instruction.write_text("Answer with the colour alone.\n")
    asked = ("--baseline-prompt", instruction, "--shots", "2", "--batch-size", "8")
    capsys.readouterr()
    first = ask(capsys, "eval", lora, *asked)
    before = sorted(path.read_bytes() for path in (lora / "eval" / "work").iterdir())

    def never(*_: object) -> None:
        raise AssertionError("the base was opened")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "load_base_model", never)
        second = ask(capsys, "eval", tmp_path / "runs" / "full", *asked)
        with pytest.raises(AssertionError, match="the base was opened"):
            evaluate_run(tmp_path / "runs" / "full", (), EvalOptions(batch_size=7), Terminal())
    for side in ("base", "prompted"):
        assert second[side] == first[side]
    assert second["tuned"]["loss"] != first["tuned"]["loss"]
    assert sorted(path.read_bytes() for path in (lora / "eval" / "work").iterdir()) == before


def test_a_4_bit_base_is_another_base(
    eval_run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.inference import open_model as engine

    shutil.copytree(eval_run, tmp_path / "runs" / "tiny")
    shutil.copy(eval_run.parents[1] / "rows.jsonl", tmp_path)
    lora = unevaluated(tmp_path / "runs" / "tiny")
    evaluate_run(lora, (), EvalOptions(forgetting=False), Terminal())
    method = {"mode": "qlora", "rank": 4}
    training = {"batch_size": 4, "learning_rate": "1e-3", "precision": "fp32", "max_steps": 1}
    recipe = save_recipe(tmp_path, tiny_model, name="four", method=method, training=training)
    assert run(["train", str(recipe)]) == 0
    opened: list[int] = []
    counted = _counting(engine.load_base_model, opened)
    monkeypatch.setattr(engine, "load_base_model", counted)
    evaluate_run(tmp_path / "runs" / "four", (), EvalOptions(forgetting=False), Terminal())
    assert opened


@pytest.mark.parametrize("part", tiers(["base", "config"], "base"))
def test_outputs_of_an_unknown_base_are_not_reused(
    part: str, eval_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.inference import open_model as engine

    runs = [tmp_path / "runs" / name for name in ("one", "other")]
    for folder in runs:
        shutil.copytree(eval_run, folder)
        file = unevaluated(folder) / "prompt_manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {part: None}))
    opened: list[int] = []
    counted = _counting(engine.load_base_model, opened)
    monkeypatch.setattr(engine, "load_base_model", counted)
    for folder in runs:
        evaluate_run(folder, (), EvalOptions(forgetting=False), Terminal())
    assert len(opened) == 2


def _counting(real: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counted(*arguments: object) -> Any:
        calls.append(1)
        return real(*arguments)

    return counted


def test_a_damaged_evaluation_is_named(
    unevaluated_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(capsys, "eval", unevaluated_run, "--no-forgetting")
    file = unevaluated_run / "eval" / f"{found['key']}.json"
    file.write_text(file.read_text().replace('"rows"', '"row"', 1))
    assert run(["eval", str(unevaluated_run), "--no-forgetting"]) == 1
    assert f"{file}: not as ftcli" in capsys.readouterr().err
