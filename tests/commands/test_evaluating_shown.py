"""`ftcli eval`: flags, and what is shown of an evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.commands.test_end_to_end import ask
from tests.conftest import save_recipe
from tests.evaluated import row_of, rows_of, unevaluated


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


def test_a_recipe_is_read_as_it_is_now(
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
    notes = [line for line in capsys.readouterr().err.splitlines() if "stays as it was" in line]
    assert [line.partition("was: ")[2] for line in notes] == [
        "method.rank: 4 → 8",
        "training.epochs: 3.0 → 2.0",
        "training.max_steps: 6 → null",
        "training.learning_rate: 0.01 → auto",
        "training.precision: fp32 → auto",
    ]

    (tmp_path / "form.json").unlink()
    assert run(["eval", str(recipe), *asked]) == 1
    assert f"{tmp_path}/form.json: eval.format.schema: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 120])
def test_what_a_person_reads(
    eval_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
) -> None:
    instruction = tmp_path / "instructions.txt"
    instruction.write_text("List the product.\n")
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["eval", str(eval_run), "--baseline-prompt", str(instruction), "--shots", "1"]) == 0
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


def test_the_rows_own_answers_are_in_the_table(
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


def test_the_last_evaluation_is_on_the_page_with_its_flags(
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


def test_the_score_that_decides_must_exist(
    eval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["eval", str(eval_run), "--no-forgetting"]
    assert run([*flags, "--set", "eval.decides_by=formt_rate"]) == 2
    said = capsys.readouterr().err
    assert "eval.decides_by: no score 'formt_rate'" in said
    assert "rows, loss" not in said  # before anything is computed
    assert ask(capsys, *flags, "--set", "eval.decides_by=loss")["decides_by"] == "loss"
