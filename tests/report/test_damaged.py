"""The page of a run that lacks something, or whose files are damaged; the records of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.errors import FtcliError
from ftcli.report.figures import read_figures
from ftcli.runs.folder import RunFolder
from ftcli.training.plan.plan import Plan
from tests.outline import outline
from tests.reported import evaluation, plan_record, save_evaluation, save_run, usual_lines
from tests.tiers import tiers

MISSING = {
    "eval": "Not evaluated yet: ftcli eval runs/shop",
    "plan.json": "Hashes",
    "metrics.jsonl": "No step was recorded",
    "data": "No prepared rows are in the run: ftcli prepare runs/shop",
    "speed.jsonl": "before clipping",
    "prompt_manifest.json": "adapter_model.safetensors (sha256)",
    "recipe.yaml": "unknown model · unknown method",
    "eval/answers": "only 0 of 40 rows; delete it and evaluate again",
}


@pytest.mark.parametrize("name", tiers(MISSING, *list(MISSING)[::3]))
def test_a_report_without_a_part_says_how_to_get_it(whole: RunFolder, name: str) -> None:
    (whole.path / name).rename(whole.path / "elsewhere")
    found = outline(whole)
    assert MISSING[name] in found.text or name == "speed.jsonl"
    assert ("could not be read" in found.text) == (name == "eval/answers")


@pytest.mark.parametrize("written", ["", "{", "[1, 2]", "null", '{"a": [', "\x00\xff"])
def test_files_that_are_broken_are_named_with_what_to_do(whole: RunFolder, written: str) -> None:
    files = {
        "plan.json": "train again",
        "prompt_manifest.json": "train again",
        "recipe.yaml": "",
        "data/prepared.json": "prepare again",
        "data/advice.json": "prepare again",
        "eval/0123456789abcdef.json": "remove it and evaluate again",
        "eval/ffffffffffffffff.json": "remove it and evaluate again",
    }
    for name in files:
        (whole.path / name).write_text(written, encoding="utf-8")
    (whole.path / "metrics.jsonl").write_text("{")
    found = outline(whole)
    assert "Problems: some files could not be read" in found.text
    problems = read_figures(whole).problems
    for name, advice in files.items():
        assert [each for each in problems if each.startswith(f"{name}: ") and advice in each], name
    assert "Not evaluated yet" in found.text and "metrics.jsonl: 1 unreadable line" in found.text
    assert str(whole.path) not in found.text


@pytest.mark.parametrize("written", ["", "{", "[]", '{"state": "done"}', '{"unknown": 1}'])
def test_no_page_is_made_from_a_run_json_that_is_broken(whole: RunFolder, written: str) -> None:
    whole.manifest.write_text(written)
    with pytest.raises(FtcliError, match="restore it from a copy, or train again") as caught:
        outline(whole)
    assert caught.value.code == "run_broken" and caught.value.file == str(whole.manifest)
    assert not whole.report.exists()


def test_one_damaged_evaluation_is_left_out_and_named(whole: RunFolder) -> None:
    file = whole.evaluation("0123456789abcdef")
    values = json.loads(file.read_text())
    values["scores"][0]["tuned"]["value"] = "much"
    file.write_text(json.dumps(values))
    found = outline(whole)
    assert "eval/0123456789abcdef.json: not as ftcli" in found.text
    assert "(scores.0.tuned.value: Input should be a valid number" in found.text
    assert "12 rows of other.jsonl" in found.text


@pytest.mark.parametrize("left", [0, 7, None])
def test_answers_that_are_gone_are_named(tmp_path: Path, left: int | None) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(), usual_lines(left or 0))
    file = run.evaluations / evaluation().answers
    file.write_bytes(file.read_bytes() + b'{"number": 9}\n\xff\n')
    if left is None:
        file.unlink()
    gone = f"only {left or 0} of 120 rows; delete it and evaluate again"
    assert f"eval/answers/0123456789abcdef.jsonl: {gone}" in outline(run).text


def test_run_json_is_written_and_read_as_one_class(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.update_manifest(state="training", seed=1, parent=None)
    run.update_manifest(state="finished", result={"steps": 4})
    assert json.loads(run.manifest.read_text()) == {
        "state": "finished", "seed": 1, "parent": None, "result": {"steps": 4}
    }  # fmt: skip
    record = run.record()
    assert (record.state, record.seed, record.memory) == ("finished", 1, None)
    assert record.result is not None and record.result.steps == 4
    for changes in ({"weights": ["a"]}, {"unknown": 1}, {"state": "done"}):
        with pytest.raises(FtcliError) as caught:
            run.update_manifest(**changes)
        assert caught.value.code == "run_broken"
    assert run.record() == record


def test_plan_json_keeps_types_and_order(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan_record().write(file)
    found = Plan.read(file)
    assert found == plan_record()
    assert [*found.reasons][:2] == ["training.precision", "model.dtype"]
