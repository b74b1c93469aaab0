"""`ftcli eval` on a tiny random model: losses, answers, general ability, a prompted base."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ftcli.cli import run
from ftcli.runs.results import EvalResult
from tests.commands.test_end_to_end import ask
from tests.conftest import save_recipe
from tests.evaluated import row_of, rows_of
from tests.tiers import tiers


def test_base_and_tuned_with_intervals_and_verdicts(
    unevaluated_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(capsys, "eval", unevaluated_run)
    loss = row_of(found, "loss")["tuned_vs_base"]
    assert loss["value"] == pytest.approx(found["tuned"]["loss"] - found["base"]["loss"])
    assert loss["interval"][0] <= loss["value"] <= loss["interval"][1]
    assert loss["n"] == found["rows"] == loss["rows_better"] + loss["rows_worse"] == 8
    assert loss["verdict"] == "too few rows"
    rows = rows_of(unevaluated_run, found)
    for side in ("base", "tuned"):
        losses = [row["sides"][side]["loss"] for row in rows]
        tokens = [row["sides"][side]["loss_tokens"] for row in rows]
        assert found[side]["loss"] == pytest.approx(sum(losses) / sum(tokens))
        assert found[side]["perplexity"] == pytest.approx(math.exp(found[side]["loss"]))
        lengths = [row["sides"][side]["tokens"] for row in rows]
        assert found["calls"][side]["answer_tokens"] == pytest.approx(sum(lengths) / 8)
        for row in found["scores"]:
            if row["name"] in rows[0]["sides"][side]["counts"]:
                kept = [each["sides"][side]["counts"][row["name"]] for each in rows]
                numerator, denominator = map(sum, zip(*kept, strict=True))
                assert row[side]["value"] == pytest.approx(numerator / denominator), row["name"]
    # It is read back by the class that wrote it.
    kept = EvalResult.read(unevaluated_run / "eval" / f"{found['key']}.json")
    assert json.loads(json.dumps(kept.as_json())) == {
        name: value for name, value in found.items() if name != "run_dir"
    }


def test_general_ability_before_and_after(
    eval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(capsys, "eval", eval_run, "--limit", "2")
    rows = {row["name"]: row for row in found["forgetting"]}
    assert list(rows) == [
        *("general_text", "instructions", "instructions_followed", "instructions_finished")
    ]
    assert found["general_text"] == "built-in"
    assert rows["instructions_finished"]["tuned_vs_base"]["n"] == 10  # conftest.few_instructions
    text = rows["general_text"]
    difference = text["tuned"]["value"] - text["base"]["value"]
    assert text["tuned_vs_base"]["value"] == pytest.approx(difference)
    without = ask(capsys, "eval", eval_run, "--limit", "2", "--no-forgetting")
    assert without["forgetting"] == []


def test_general_sets_of_the_users_own(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "Rain falls on the hills."}\n{"text": "Two boats left."}\n')
    instructions = tmp_path / "instructions.jsonl"
    lines = [
        {"prompt": "Say anything.", "completion": "ab", "check": ".*"},
        {"prompt": "Say nothing.", "completion": "cd", "check": "[^\\s\\S]"},
        {"prompt": "Say what you like.", "completion": "ef"},
    ]
    instructions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--general-text", text, "--general-instructions", instructions, "--limit", "2"]
    found = ask(capsys, "eval", eval_run, *flags)
    assert found["general_text"] == str(text)
    followed = row_of(found, "instructions_followed")
    assert (followed["tuned"]["n"], followed["tuned"]["value"]) == (2, 0.5)
    assert row_of(found, "instructions_finished")["tuned"]["n"] == 3
    assert row_of(found, "general_text")["tuned"]["n"] == 2
    verdicts = {row["tuned_vs_base"]["verdict"] for row in found["forgetting"]}
    assert verdicts == {"too few rows"}


def test_the_base_with_a_long_prompt(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instruction = tmp_path / "instructions.txt"
    instruction.write_text("List the product.\n")
    flags = ["--baseline-prompt", instruction, "--shots", "2"]
    found = ask(capsys, "eval", eval_run, *flags)
    assert found["examples"] == 2 and found["instruction"] == str(instruction)
    calls = found["calls"]
    assert calls["prompted"]["prompt_tokens"] > 2 * calls["base"]["prompt_tokens"]
    assert calls["base"]["prompt_tokens"] == calls["tuned"]["prompt_tokens"]
    assert row_of(found, "loss")["tuned_vs_prompted"] is not None
    rows = rows_of(eval_run, found)
    # The same answers are scored after either prompt.
    for row in rows:
        tokens = {side: answer["loss_tokens"] for side, answer in row["sides"].items()}
        assert len(set(tokens.values())) == 1
    instruction.write_text("List the product and its colour.\n")
    again = ask(capsys, "eval", eval_run, *flags)
    assert again["calls"]["prompted"]["prompt_tokens"] > calls["prompted"]["prompt_tokens"]


def test_an_instruction_that_is_too_long_or_cannot_be_read(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instruction = tmp_path / "instructions.txt"
    instruction.write_text("red " * 600)
    assert run(["eval", str(eval_run), "--baseline-prompt", str(instruction)]) == 1
    err = capsys.readouterr().err
    assert "context of 512" in err and "fewer --shots" in err
    for content, words in (
        ("Größe".encode("latin-1"), "not UTF-8 text; save it"),
        (b" \n", "has no instruction"),
    ):
        instruction.write_bytes(content)
        assert run(["eval", str(eval_run), "--baseline-prompt", str(instruction)]) == 1
        assert f"{instruction}: " in (err := capsys.readouterr().err) and words in err


def test_a_run_on_plain_texts(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": f"A red kettle, number {n}."}) for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    recipe = save_recipe(tmp_path, tiny_model, training={"max_steps": 2, "batch_size": 4})
    assert run(["train", str(recipe)]) == 0
    capsys.readouterr()
    assert run(["eval", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["scores"]] == ["loss"]
    assert [row["name"] for row in found["forgetting"]] == ["general_text"]
    assert row_of(found, "loss")["tuned_vs_base"] is not None
    assert found["samples"] == [] and found["calls"] == {}
    instruction = tmp_path / "instructions.txt"
    instruction.write_text("List it.")
    assert run(["eval", str(recipe), "--baseline-prompt", str(instruction)]) == 2
    assert "trained on plain texts" in capsys.readouterr().err


def test_a_loss_of_nan_ends_the_evaluation(
    unevaluated_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftcli.inference import generation

    monkeypatch.setattr(
        generation, "score_batch", lambda _, rows: [(float("nan"), 3) for _ in rows]
    )
    assert run(["eval", str(unevaluated_run), "--no-base"]) == 1
    err = capsys.readouterr().err
    assert "rows.jsonl:" in err and "the loss of this row is nan" in err


def conversations(tmp_path: Path) -> None:
    lines = []
    for n in range(24):
        turns = [f"mug {n}?", "A red mug.", f"And {n + 1}?", "A blue one."]
        roles = ("user", "assistant") * 2
        pairs = zip(roles, turns, strict=True)
        lines.append({"messages": [{"role": role, "content": text} for role, text in pairs]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("loss_on", "compared"), tiers([("completions", False), ("all", True)], ("all", True))
)
def test_losses_are_compared_only_on_the_same_tokens(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    loss_on: str,
    compared: bool,
) -> None:
    conversations(tmp_path)
    data = {"train": "rows.jsonl", "validation": 0, "test": 10, "loss_on": loss_on}
    recipe = save_recipe(tmp_path, tiny_model, data=data, training={"max_steps": 1})
    assert run(["train", str(recipe)]) == 0
    instruction = tmp_path / "instructions.txt"
    instruction.write_text("List it.")
    found = ask(
        capsys, "eval", recipe, "--baseline-prompt", instruction, "--shots", "1", "--no-forgetting"
    )
    assert (row_of(found, "loss")["tuned_vs_prompted"] is not None) is compared
    rows = rows_of(tmp_path / "runs" / "tiny", found)
    # Only answers are scored, whatever was trained on: at most as many tokens as both answers.
    assert all(row["sides"]["tuned"]["loss_tokens"] < 30 for row in rows)
