"""Rows that an evaluation is on: how new they are to the run, and how they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ftcli.cli import run
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.evaluation.eval_rows import stream_rows, stream_turns
from ftcli.training.opening import open_run
from tests.commands.test_end_to_end import ask
from tests.conftest import pair, save_recipe
from tests.evaluated import unevaluated

FEW = ("--no-base", "--no-forgetting")


def prompts_of(run_folder: Path, split: str) -> list[str]:
    rows = read_split(run_folder / "data", split).to_pylist()  # type: ignore[arg-type]
    return [json.loads(row["messages"])[-2][1] for row in rows]


def save(path: Path, prompts: list[str]) -> Path:
    rows = [{"prompt": prompt, "completion": "Another answer."} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(
    capsys: pytest.CaptureFixture[str], run_folder: Path, data: Path
) -> tuple[dict[str, object], str]:
    """The fields about the rows, and stderr of the first time."""
    capsys.readouterr()
    assert run(["eval", str(run_folder), "--data", str(data), *FEW]) == 0
    said = capsys.readouterr().err
    assert run(["eval", str(run_folder), "--data", str(data), *FEW, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {name: value for name, value in found.items() if name.startswith("rows")}, said


def test_rows_that_were_trained_on_are_counted_and_warned_of(
    unevaluated_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, validation = (
        prompts_of(unevaluated_run, "train"),
        prompts_of(unevaluated_run, "validation"),
    )
    mixed = save(tmp_path / "mixed.jsonl", [*train[:2], validation[0], "New?", "Newer?"])
    found, said = evaluate(capsys, unevaluated_run, mixed)
    assert found == {
        "rows": 5,
        "rows_trained_on": 2,
        "rows_in_validation": 1,
    }
    warning = (
        f"warning: {mixed}: 2 of 5 rows ask what the run was trained on, 1 of 5 rows chose its "
        "checkpoint: the tuned model looks better on them than it is; take rows that it has not "
        "seen"
    )
    assert warning in said
    assert run(["eval", str(unevaluated_run), "--data", str(mixed), *FEW]) == 0
    assert warning in capsys.readouterr().err, "also when stored scores are shown"


def test_new_rows_and_those_held_out_for_the_test(
    unevaluated_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path / "new.jsonl", ["New?", *prompts_of(unevaluated_run, "test")[:2]])
    found, said = evaluate(capsys, unevaluated_run, file)
    assert (found["rows_trained_on"], found["rows_in_validation"]) == (0, 0)
    assert "warning" not in said
    held_out = ask(capsys, "eval", unevaluated_run, *FEW)
    assert (held_out["rows_trained_on"], held_out["rows_in_validation"]) == (0, 0)


def test_rows_of_validation_have_chosen_the_checkpoint(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the training rows, which overlap with held-out rows, are gone."""
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(unevaluated(eval_run), copy)
    prepared = json.loads((copy / "data" / "prepared.json").read_text())
    without = prepared | {"test": {"rows": 0, "tokens": 0, "label_tokens": 0}}
    for overlap, trained_on in ((0, 0), (1, None)):
        (copy / "data" / "prepared.json").write_text(json.dumps(without | {"overlap": overlap}))
        found = ask(capsys, "eval", copy, *FEW)
        assert found["rows_in_validation"] == 8
        assert found["rows_trained_on"] == trained_on
        (copy / "data" / "train.arrow").unlink(missing_ok=True)
        shutil.rmtree(copy / "eval")


def test_a_system_turn_makes_no_new_question(
    unevaluated_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [
        ("system", "Be kind."),
        ("user", prompts_of(unevaluated_run, "train")[0]),
        ("assistant", "A"),
    ]
    line = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(line) + "\n")
    found, _ = evaluate(capsys, unevaluated_run, tmp_path / "talks.jsonl")
    assert found["rows_trained_on"] == 1


def test_what_cannot_be_compared_is_said(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(eval_run, copy)
    file = save(tmp_path / "rows.jsonl", prompts_of(copy, "train")[:1])
    (copy / "data" / "train.arrow").unlink()
    found, said = evaluate(capsys, copy, file)
    assert found["rows_trained_on"] is None and found["rows_in_validation"] is None
    assert "whether these rows were trained on is not known: " in said
    assert "train.arrow: is gone" in said


def test_allowed_leaks_and_replayed_rows_are_trained_on(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair(number) for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaked = save(tmp_path / "test.jsonl", [rows[0]["prompt"], "New?"])
    general = save(tmp_path / "general.jsonl", [f"Tell me of hill {n}." for n in range(9)])
    data = {"train": "rows.jsonl", "test": leaked.name, "validation": 0, "allow_overlap": True}
    data |= {"replay": {"source": general.name, "ratio": 0.2}}
    recipe = save_recipe(tmp_path, tiny_model, data=data, training={"max_steps": 1})
    assert run(["train", str(recipe)]) == 0
    found = ask(capsys, "eval", recipe, *FEW)
    assert found["data"] == "test" and found["rows_trained_on"] == 1
    again, _ = evaluate(capsys, tmp_path / "runs" / "tiny", general)
    assert again["rows_trained_on"] == 6 and again["rows"] == 9


def test_plain_texts_are_compared_by_what_is_trained_on(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"A red kettle, number {number}." for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    recipe = save_recipe(tmp_path, tiny_model, training={"max_steps": 1, "batch_size": 4})
    assert run(["train", str(recipe)]) == 0
    opened = open_run(tmp_path / "runs" / "tiny")
    some = tmp_path / "some.jsonl"
    lines = [*texts, "A blue lamp."]
    some.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    found, _ = evaluate(capsys, tmp_path / "runs" / "tiny", some)
    assert found["rows_trained_on"] == opened.prepared.train.rows
    assert found["rows_in_validation"] == opened.prepared.validation.rows


def test_training_rows_are_streamed_as_they_stand(eval_run: Path) -> None:
    opened = open_run(eval_run)
    whole = read_split(eval_run / "data", "train").to_pylist()
    found = list(stream_rows(opened, "train"))
    assert [ids.as_py() for _, ids in found] == [row["input_ids"] for row in whole]
    turns = [[[turn.role, turn.content] for turn in each] for each in stream_turns(opened, "train")]
    assert turns == [json.loads(row["messages"]) for row in whole]


def test_examples_come_from_training_rows_that_are_proven(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(eval_run, copy)
    train = copy / "data" / "train.arrow"
    train.write_bytes(train.read_bytes()[:-64] + b"\0" * 64)
    instruction = tmp_path / "instructions.txt"
    instruction.write_text("List it.")
    assert run(["eval", str(copy), "--baseline-prompt", str(instruction), "--no-forgetting"]) == 1
    err = capsys.readouterr().err
    assert "train.arrow: not as ftcli prepare wrote it" in err and "Traceback" not in err
