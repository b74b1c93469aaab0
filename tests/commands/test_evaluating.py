"""`ftcli eval` on a tiny random model: what is measured, kept, gone on with and refused."""

from __future__ import annotations

import json
import math
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


@pytest.fixture
def fresh(eval_run: Path) -> Path:
    return unevaluated(eval_run)


def row_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    """A row of the table, or of general ability."""
    (row,) = [row for row in found["scores"] + found["forgetting"] if row["name"] == name]
    return dict(row)


def test_base_and_tuned_with_intervals_and_verdicts(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(capsys, "eval", fresh)
    loss = row_of(found, "loss")["tuned_vs_base"]
    assert loss["value"] == pytest.approx(found["tuned"]["loss"] - found["base"]["loss"])
    assert loss["interval"][0] <= loss["value"] <= loss["interval"][1]
    assert loss["n"] == found["rows"] == loss["rows_better"] + loss["rows_worse"] == 8
    assert loss["verdict"] == "too few rows"
    rows = rows_of(fresh, found)
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
                tops, bottoms = map(sum, zip(*kept, strict=True))
                assert row[side]["value"] == pytest.approx(tops / bottoms), row["name"]
    # It is read back by the class that wrote it.
    kept = EvalResult.read(fresh / "eval" / f"{found['key']}.json")
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


def test_general_sets_of_ones_own(
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
    told = tmp_path / "instructions.txt"
    told.write_text("List the product.\n")
    flags = ["--baseline-prompt", told, "--shots", "2"]
    found = ask(capsys, "eval", eval_run, *flags)
    assert found["examples"] == 2 and found["instruction"] == str(told)
    calls = found["calls"]
    assert calls["prompted"]["prompt_tokens"] > 2 * calls["base"]["prompt_tokens"]
    assert calls["base"]["prompt_tokens"] == calls["tuned"]["prompt_tokens"]
    assert row_of(found, "loss")["tuned_vs_prompted"] is not None
    rows = rows_of(eval_run, found)
    # The same answers are scored behind either prompt.
    for row in rows:
        tokens = {side: answer["loss_tokens"] for side, answer in row["sides"].items()}
        assert len(set(tokens.values())) == 1
    told.write_text("List the product and its colour.\n")
    again = ask(capsys, "eval", eval_run, *flags)
    assert again["calls"]["prompted"]["prompt_tokens"] > calls["prompted"]["prompt_tokens"]


def test_an_instruction_that_is_too_long_or_cannot_be_read(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "instructions.txt"
    told.write_text("red " * 600)
    assert run(["eval", str(eval_run), "--baseline-prompt", str(told)]) == 1
    err = capsys.readouterr().err
    assert "context of 512" in err and "fewer --shots" in err
    for content, words in (
        ("Größe".encode("latin-1"), "not UTF-8 text; save it"),
        (b" \n", "has no instruction"),
    ):
        told.write_bytes(content)
        assert run(["eval", str(eval_run), "--baseline-prompt", str(told)]) == 1
        assert f"{told}: " in (err := capsys.readouterr().err) and words in err


def test_answers_do_not_depend_on_how_many_are_drawn_at_once(
    eval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(batch_size: int) -> list[tuple[str, str]]:
        found = ask(capsys, "eval", eval_run, "--batch-size", batch_size, "--no-forgetting")
        rows = rows_of(eval_run, found)
        return [tuple(row["sides"][side]["text"] for side in ("base", "tuned")) for row in rows]

    one = answers(1)
    assert len({text for row in one for text in row}) > 2  # not all alike
    assert answers(8) == one
    assert answers(3) == one


@pytest.mark.parametrize("kept_lines", [1, 3])
def test_an_evaluation_that_was_stopped_goes_on(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, kept_lines: int
) -> None:
    asked = EvalOptions(with_base=False, forgetting=False, batch_size=2)
    whole = evaluate_run(fresh, (), asked, Terminal())
    file = next((fresh / "eval" / "work").iterdir())
    lines = file.read_text().splitlines(keepends=True)
    for other in (fresh / "eval").glob("*.json"):
        other.unlink()
    file.write_text("".join(lines[:kept_lines]) + '{"losses": [[0, 1')
    added: list[int] = []
    monkeypatch.setattr(ModelOutputs, "add", _counting(ModelOutputs.add, added))
    again = evaluate_run(fresh, (), asked, Terminal())
    assert not again.stored
    assert len(added) == len(lines) - kept_lines
    assert _timeless(again.result) == _timeless(whole.result)


def _timeless(result: EvalResult) -> EvalResult:
    calls = {
        side: call.model_copy(update={"tokens_per_second": None})
        for side, call in result.calls.items()
    }
    return result.model_copy(update={"calls": calls, "finished": ""})


def _counting(real: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counted(*arguments: object) -> Any:
        calls.append(1)
        return real(*arguments)

    return counted


def test_ctrl_c_keeps_what_was_answered(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftcli.inference import generation

    real, calls = generation.answer_batch, []

    def second_time_interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(generation, "answer_batch", second_time_interrupted)
    flags = ["eval", str(fresh), "--batch-size", "4", "--no-base"]
    assert run(flags) == 130
    assert "the same command resumes" in capsys.readouterr().err
    work = "".join(file.read_text() for file in (fresh / "eval" / "work").iterdir())
    assert work.count('"answers"') == 1
    assert run(flags) == 0
    assert len(calls) == 3  # one batch was kept, one was cut short, one was left


def test_another_format_is_scored_without_a_model(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.inference import open_model as engine

    asked = EvalOptions(limit=4, forgetting=False)
    first = evaluate_run(fresh, (), asked, Terminal())

    def never(*_: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(engine, "load_base_model", never)
    monkeypatch.setattr(engine, "load_tuned_model", never)
    overrides = ['eval.format={type: regex, pattern: "[^#]*"}']
    second = evaluate_run(fresh, overrides, asked, Terminal())
    assert second.result.row("format_rate") and not first.result.row("format_rate")
    losses = [each.result.row("loss") for each in (first, second)]
    assert losses[0] is not None and losses[0] == losses[1]


def test_what_the_base_does_is_taken_from_a_run_beside(
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
    told = tmp_path / "instructions.txt"
    told.write_text("Answer with the colour alone.\n")
    asked = ("--baseline-prompt", told, "--shots", "2", "--batch-size", "8")
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


def test_a_base_in_four_bits_is_another(
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


@pytest.mark.parametrize("part", ["base", "config"])
def test_a_base_that_is_not_known_is_asked_anew(
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


def test_a_recipe_that_names_a_run_is_read_as_it_stands(
    eval_run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = tmp_path / "runs" / "tiny"
    shutil.copytree(eval_run, finished)
    unevaluated(finished)
    (tmp_path / "form.json").write_text('{"type": "object"}')
    recipe = save_recipe(
        tmp_path,
        tiny_model,
        method={"mode": "lora", "rank": 8},
        training={"epochs": 2, "batch_size": 4, "seed": 7},
        eval={"format": {"type": "json", "schema": "form.json"}},
    )
    asked = ("--limit", "2", "--no-forgetting")
    found = ask(capsys, "eval", recipe, *asked)
    assert "json_conforming" in found["tuned"]
    assert found["flags"] == ["--limit 2", "--no-forgetting", "eval: of the recipe"]
    assert "json_conforming" not in ask(capsys, "eval", finished, *asked)["tuned"]
    other = ask(capsys, "eval", recipe, *asked, "--set", "eval.format.schema=null")
    assert "json_conforming" not in other["tuned"] and "json_valid" in other["tuned"]

    assert run(["eval", str(recipe), *asked]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "stays as it was" in line]
    assert [line.partition("was: ")[2] for line in told] == [
        "method.rank: 4 → 8",
        "training.epochs: 3.0 → 2.0",
        "training.max_steps: 6 → null",
        "training.learning_rate: 0.01 → auto",
        "training.precision: fp32 → auto",
    ]

    (tmp_path / "form.json").unlink()
    assert run(["eval", str(recipe), *asked]) == 1
    assert f"{tmp_path}/form.json: eval.format.schema: cannot be read" in capsys.readouterr().err


def test_flags_that_contradict_each_other(
    eval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, words in (
        (["--shots", "3"], "--shots needs --baseline-prompt"),
        (["--baseline-prompt", "instructions.txt", "--no-base"], "which --no-base leaves out"),
        (["--general-text", "text.txt", "--no-forgetting"], "--no-forgetting leaves out"),
    ):
        assert run(["eval", str(eval_run), *flags]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 120])
def test_what_a_person_reads(
    eval_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
) -> None:
    told = tmp_path / "instructions.txt"
    told.write_text("List the product.\n")
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["eval", str(eval_run), "--baseline-prompt", str(told), "--shots", "1"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    heads = ["8", "held-out", "rows", "base", "prompted", "tuned"]
    assert sum(line.split()[:6] == heads for line in lines) == 1
    assert "8 held-out rows (test) are too few for a verdict: 10 at least." in out
    assert lines[-2].startswith("all rows side by side: ")
    assert lines[-1].startswith("next   ftcli report ")
    assert max(map(len, lines[:-2])) <= columns
    assert "general ability (forgetting)" in out and "general text perplexity" in out
    assert "Nothing checked whether the answers are correct" in out
    assert sum(line.startswith("prompt  ") for line in lines) == 2


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
    told = tmp_path / "instructions.txt"
    told.write_text("List it.")
    assert run(["eval", str(recipe), "--baseline-prompt", str(told)]) == 2
    assert "trained on plain texts" in capsys.readouterr().err


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


def test_sampled_answers_are_drawn_the_same_again(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    flags = ["--set", "generation.temperature=2.0", "--no-base", "--no-forgetting"]

    def texts(*more: object) -> list[str]:
        found = ask(capsys, "eval", fresh, *flags, *more)
        return [row["sides"]["tuned"]["text"] for row in rows_of(fresh, found)]

    once = texts()
    shutil.rmtree(fresh / "eval")
    assert texts() == once
    assert texts("--set", "training.seed=7") != once


def test_a_loss_that_is_no_number_ends_it(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftcli.inference import generation

    monkeypatch.setattr(
        generation, "score_batch", lambda _, rows: [(float("nan"), 3) for _ in rows]
    )
    assert run(["eval", str(fresh), "--no-base"]) == 1
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


@pytest.mark.parametrize(("loss_on", "compared"), [("completions", False), ("all", True)])
def test_a_loss_is_compared_on_the_same_tokens_alone(
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
    told = tmp_path / "instructions.txt"
    told.write_text("List it.")
    found = ask(
        capsys, "eval", recipe, "--baseline-prompt", told, "--shots", "1", "--no-forgetting"
    )
    assert (row_of(found, "loss")["tuned_vs_prompted"] is not None) is compared
    rows = rows_of(tmp_path / "runs" / "tiny", found)
    # Only answers are scored, whatever was trained on: at most as many tokens as both answers.
    assert all(row["sides"]["tuned"]["loss_tokens"] < 30 for row in rows)


def test_what_was_asked_last_stands_on_the_page_with_its_flags(
    eval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = ("--set", "eval.format={type: json}")
    assert ask(capsys, "eval", eval_run, "--no-forgetting")["flags"] == ["--no-forgetting"]
    found = ask(capsys, "eval", eval_run, "--no-forgetting", *trial)
    assert found["flags"] == ["--no-forgetting", "--set eval.format={type: json}"]
    page = (eval_run / "report.html").read_text()
    shown = 'Asked with <code dir="auto">--no-forgetting'
    assert f"{shown} --set eval.format={{type: json}}</code>" in page
    plain = ask(capsys, "eval", eval_run, "--no-forgetting")
    assert ask(capsys, "eval", eval_run, "--no-forgetting") == plain
    assert f"{shown}</code>" in (eval_run / "report.html").read_text()


def test_the_rows_own_answers_stand_in_the_table(
    eval_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "held.jsonl"
    prompt = "Write.\n\nProduct: Torkel Bag\nColours: olive\nPockets: 3"
    answers = ["# Torkel Bag\nolive, 3", "Torkel, waterproof, 20 litres."]
    pairs = [{"prompt": prompt, "completion": answer} for answer in answers * 6]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    never = tmp_path / "never.txt"
    never.write_text("waterproof\n")
    grounding = {"facts": "Product:(?s:.*)", "banned": str(never)}
    flags = ["--data", str(data), "--no-forgetting"]
    flags += ["--set", f"eval.grounding={json.dumps(grounding)}"]
    found = ask(capsys, "eval", eval_run, *flags)
    for name, value in {"not_in_prompt": 0.5, "coverage": 0.5, "banned_phrases": 0.5}.items():
        assert row_of(found, name)["your_answers"]["value"] == pytest.approx(value), name
    assert row_of(found, "not_in_prompt")["tuned_vs_base"]["verdict"] is None
    assert rows_of(eval_run, found)[0]["facts"] == prompt.removeprefix("Write.\n\n")
    assert found["truth_measured_by"] == []
    for columns, head in ((80, "yours"), (120, "your answers")):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run(["eval", str(eval_run), *flags]) == 0
        lines = capsys.readouterr().out.splitlines()
        (heads,) = [line for line in lines if line.strip().startswith("12 held-out rows")]
        wide = [line for line in lines[:-2] if not line.startswith("prompt  ")]
        assert head in heads and max(map(len, wide)) <= columns
        (row,) = [line for line in lines if line.strip().startswith("terms not in the prompt")]
        assert row.split()[5] == "50%"


def test_what_is_required_fails_with_its_row(
    eval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["eval", str(eval_run), "--no-forgetting"]
    assert run([*flags, "--require", "loss<100", "--require", "rouge>=0"]) == 0
    capsys.readouterr()
    assert run([*flags, "--json", "--require", "stop>=101%", "--require", "loss:better"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == 8
    lines = [line for line in captured.err.splitlines() if line.startswith("--require")]
    assert lines[0].startswith("--require stop>=101%: finished (EOS) is ")
    assert lines[1].startswith("--require loss:better: loss ") and "too few rows" in lines[1]
    for wrong, words in (
        ("loss", "expected a score with a limit"),
        ("lss>1", "did you mean loss?"),
    ):
        assert run([*flags, "--require", wrong]) == 2
        assert words in capsys.readouterr().err


def test_the_score_that_decides_has_to_be_there(
    eval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["eval", str(eval_run), "--no-forgetting"]
    assert run([*flags, "--set", "eval.decides_by=formt_rate"]) == 2
    said = capsys.readouterr().err
    assert "eval.decides_by: no score 'formt_rate'" in said
    assert "rows, loss" not in said  # before anything is computed
    assert ask(capsys, *flags, "--set", "eval.decides_by=loss")["decides_by"] == "loss"


def test_a_damaged_evaluation_is_named(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(capsys, "eval", fresh, "--no-forgetting")
    file = fresh / "eval" / f"{found['key']}.json"
    file.write_text(file.read_text().replace('"rows"', '"row"', 1))
    assert run(["eval", str(fresh), "--no-forgetting"]) == 1
    assert f"{file}: not as ftcli" in capsys.readouterr().err
