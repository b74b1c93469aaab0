"""The page of a run that lacks something, or whose files are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.artifacts import RunFolder
from tests.outline import outline
from tests.reported import (
    TUNED,
    answer,
    evaluation,
    save_evaluation,
    save_run,
    side,
    usual_lines,
)

MISSING = {
    "eval": ("Not measured yet: ftcli eval runs/shop", "Not looked at yet: ftcli eval runs/shop"),
    "plan.json": ("No plan is kept in the run.",),
    "metrics.jsonl": ("No step was recorded",),
    "data": ("No preparation is kept in the run: ftcli prepare runs/shop",),
    "speed.jsonl": ("Gradient norm before clipping",),
    "contract.json": ("adapter_model.safetensors (sha256)",),
    "recipe.yaml": ("unknown model · unknown method",),
}


def wrong(value: object) -> object:
    """The same shape with every leaf of another type."""
    match value:
        case dict():
            return {key: wrong(inner) for key, inner in value.items()}
        case list():
            return [wrong(inner) for inner in value]
        case str():
            return 7
        case _:
            return "words"


@pytest.mark.parametrize("name", MISSING)
def test_a_page_without_a_part_says_what_brings_it(whole: RunFolder, name: str) -> None:
    path = whole.path / name
    path.rename(path.with_name("elsewhere"))
    found = outline(whole)
    for words in MISSING[name]:
        assert words in found.text
    assert "could be read" not in found.text


@pytest.mark.parametrize("written", ["", "{", "[1, 2]", "null", '{"a": [', "\x00\xff"])
def test_files_that_are_broken_are_named_and_the_rest_is_shown(
    whole: RunFolder, written: str
) -> None:
    files = ["plan.json", "contract.json", "data/prepared.json", "data/advice.json"]
    files += ["eval/0123456789abcdef.json", "eval/answers/0123456789abcdef.jsonl", "metrics.jsonl"]
    for name in files:
        (whole.path / name).write_text(written, encoding="utf-8")
    found = outline(whole)
    assert "Not everything could be read" in found.text
    assert "plan.json: cannot be read" in found.text


def test_figures_of_other_types_are_left_out(whole: RunFolder) -> None:
    for file in whole.evaluations.glob("*.json"):
        file.write_text(json.dumps(wrong(json.loads(file.read_text()))))
    whole.update_manifest(**{"memory": 3, "result": [], "versions": "x", "weights": None})
    whole.metrics.write_text('{"step": "x", "loss": []}\n[]\n3\n')
    whole.plan.write_text(json.dumps(wrong(json.loads(whole.plan.read_text()))))
    outline(whole)


def test_intervals_that_look_like_certainty_are_not_shown(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    alike = evaluation(tuned=side(TUNED | {"chrf": (0.5, 0.5, 0.5)}))
    alike["differences"]["tuned_vs_base"]["chrf"] |= {"difference": 0.0, "interval": [0.0, 0.0]}
    save_evaluation(run, alike, None)
    found = outline(run)
    assert "0.50 (all rows alike)" in found.text and "±0.00 (all rows alike)" in found.text
    assert "too few rows" not in found.text and "0.88 0.84– to 0.93" in found.text
    save_evaluation(run, evaluation(rows=9), None)
    found = outline(run)
    assert "0.88 (too few rows)" in found.text and "−1.43 (too few rows)" in found.text
    assert "97% 92– to 99%" in found.text  # Wilson's interval stays wide with few rows
    counted = evaluation()
    counted["differences"]["tuned_vs_base"]["chrf"]["rows"] = 4
    save_evaluation(run, counted, None)
    found = outline(run)
    assert "0.50 (too few rows)" in found.text and "0.88 0.84– to 0.93" in found.text


@pytest.mark.parametrize("left", [0, 7, None])
def test_rows_that_are_gone_are_told_and_nothing_is_shipped(
    tmp_path: Path, left: int | None
) -> None:
    run = save_run(tmp_path)
    lines = usual_lines(4) * 30
    kept = {"prompt": "p", "reference": "r", "file": "f.jsonl", "line": 3, "tuned": answer("t")}
    save_evaluation(run, evaluation(samples=[kept]), lines)
    assert "Ship it." in outline(run).text
    save_evaluation(run, evaluation(samples=[kept]), lines[:left] if left else [])
    file = run.evaluations / "answers" / "0123456789abcdef.jsonl"
    if left is None:
        file.unlink()
    found = outline(run)
    gone = f"eval/answers/0123456789abcdef.jsonl: {left or 0} of 120 rows are there"
    assert "Not everything could be read" in found.text
    assert found.text.count(gone) == 3  # reason, list of problems, answers
    assert "Look before you ship it." in found.text
    assert f"{gone}: what was found in the answers is not known" in found.text
    assert "kept only its first answers" not in found.text


def test_rows_without_the_tuned_answers_are_gone_too(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(rows=3), [*usual_lines(2), {"file": "f", "line": 3}])
    assert "2 of 3 rows are there" in outline(run).text


def test_figures_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    report = evaluation()
    report["tuned"]["loss"] = "abc"
    report["base"]["chrf_interval"] = [0.1]
    save_evaluation(run, report, None)
    found = outline(run)
    what = "no figures, and left out: base.chrf_interval, tuned.loss"
    assert f"eval/0123456789abcdef.json: {what}" in found.text
    assert "eval/0123456789abcdef.json is damaged: not all of its figures" in found.text
    report["differences"]["tuned_vs_base"] |= {"loss": 3, "perplexity": None}
    save_evaluation(run, report, None)
    assert "tuned.loss, differences.tuned_vs_base.loss and 1 more" in outline(run).text
