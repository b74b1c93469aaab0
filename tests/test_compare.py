"""`ftcli compare` on a tiny random model, from the recipe to the verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import validate

from ftcli.cli import run
from ftcli.disk import sha256_file
from ftcli.stages.compare.cells import METHODS
from tests.conftest import pair, save_tiny_model
from tests.json_shapes import SHAPES

Recipe = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


SECTIONS: dict[str, Any] = {
    "data": {"train": "rows.jsonl", "validation": 8, "test": 12, "max_length": 256},
    "generation": {"max_new_tokens": 4},
}


@pytest.fixture
def recipe(write_recipe: Recipe) -> Path:
    return write_recipe(**SECTIONS)


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """All six methods, compared once for the tests that only look at what has come of it."""
    folder = tmp_path_factory.mktemp("six")
    (folder / "rows.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(48)))
    values = SECTIONS | {
        "name": "six",
        "model": {"id": str(tiny_model)},
        "method": {"mode": "lora", "rank": 4},
        "training": {"batch_size": 4, "learning_rate": "1e-3", "eval_steps": 4},
    }
    (folder / "six.yaml").write_text(yaml.safe_dump(values))
    assert run(["compare", str(folder / "six.yaml"), "--one-process", "--steps", "3"]) == 0
    found: dict[str, Any] = json.loads((folder / "runs/six-compare/compare.json").read_text())
    validate(found, SHAPES["compare"])
    return found


def compare(recipe: Path, *flags: str) -> int:
    """In this process; with a short general text where none is given."""
    if "--general-text" not in flags:
        text = recipe.with_name("text.txt")
        text.write_text("The sea was calm.\n\nNobody on board spoke a word.\n")
        flags = (*flags, "--general-text", str(text))
    return run(["compare", str(recipe), "--one-process", *flags])


def ask(capsys: Capture, recipe: Path, *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    code = compare(recipe, *flags, "--json")
    out, err = capsys.readouterr()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    validate(found, SHAPES["compare"])
    return found


def refused(capsys: Capture, recipe: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = compare(recipe, *flags, "--json")
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    found = json.loads(out)
    validate(found, SHAPES["error"])
    return code, found["error"]


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["name"]: cell for cell in found["cells"]}


@pytest.mark.slow
def test_all_six_methods_are_in_the_table_the_page_and_the_picture(six: dict[str, Any]) -> None:
    cells = by_name(six)
    assert tuple(cells) == METHODS and six["kept"] == []
    assert all(cell["state"] == "finished" for cell in cells.values())
    trained = {name: cell["trained_parameters"] for name, cell in cells.items()}
    assert trained["full"] == cells["full"]["total_parameters"]
    assert trained["lora"] == trained["qlora"] and len(set(trained.values())) == 5
    text = (Path(six["folder"]) / "compare.md").read_text()
    assert all(f"| {name} | " in text for name in ("base", *METHODS))
    assert six["verdict"]["text"] in text
    assert Path(six["picture"]).read_bytes().startswith(b"\x89PNG")


def test_every_cell_has_the_same_rows_seed_and_budget(six: dict[str, Any]) -> None:
    folder, cells = Path(six["folder"]), by_name(six)
    digests: dict[str, set[str]] = {}
    for name, cell in cells.items():
        for file in (folder / name / "data").iterdir():
            digests.setdefault(file.name, set()).add(sha256_file(file))
        plan = json.loads((folder / name / "plan.json").read_text())
        assert plan["steps"]["value"] == cell["steps"] == 3
        assert plan["learning_rate"]["value"] == cell["learning_rate"]
        assert json.loads((folder / name / "run.json").read_text())["seed"] == 42
    assert len(digests) >= 4 and {len(marks) for marks in digests.values()} == {1}
    assert cells["lora"]["learning_rate"] == cells["qlora"]["learning_rate"] == 1e-3
    assert cells["full"]["learning_rate"] == 2e-5


def test_scores_are_those_of_eval_and_rows_are_scored_alike(
    six: dict[str, Any], capsys: Capture
) -> None:
    folder, cells = Path(six["folder"]), by_name(six)
    capsys.readouterr()
    assert run(["eval", str(folder / "full"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    for side in ("base", "tuned"):
        assert scores[side].pop("tokens_per_second") > 0  # the answers are those of the comparison
    assert cells["full"]["scores"] == scores["tuned"]
    assert six["base"]["scores"] == scores["base"]
    for name, cell in cells.items():
        kept = json.loads((folder / name / "compare.json").read_text())["tuned"]["rows"]
        loss = sum(kept["losses"]) / sum(kept["tokens"])
        assert len(kept["losses"]) == six["rows"] == 12
        assert loss == pytest.approx(cell["scores"]["loss"], rel=1e-6)


def test_the_base_is_measured_once_and_forgetting_is_against_it(six: dict[str, Any]) -> None:
    folder = Path(six["folder"])
    beside = [
        name
        for name in METHODS
        for file in (folder / name / "eval").glob("*.json")
        if "base" in json.loads(file.read_text())
    ]
    assert set(beside) == {"full"} and six["base"]["four_bit"] is False
    for cell in six["cells"]:
        forgetting = cell["forgetting"]
        assert forgetting["before"] == pytest.approx(six["base"]["general_perplexity"])
        assert forgetting["after"] == pytest.approx(cell["general_perplexity"])
        ratio = forgetting["after"] / forgetting["before"]
        assert forgetting["change"] == pytest.approx(ratio - 1)


@pytest.mark.slow
def test_the_base_of_four_bit_methods_alone_is_held_as_they_hold_it(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    found = ask(capsys, recipe, "--methods", "qlora", "--steps", "2")
    assert found["base"]["four_bit"] is True
    more = ask(capsys, recipe, "--methods", "qlora,lora", "--steps", "2")
    assert more["base"]["four_bit"] is False and more["kept"] == ["qlora"]
    (tmp_path / "runs" / "tiny-compare" / "base.json").unlink()
    again = ask(capsys, recipe, "--methods", "qlora,lora", "--steps", "2")
    assert again["base"] == more["base"] and again["kept"] == ["qlora", "lora"]


def test_a_finished_cell_is_not_run_again(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    first = ask(capsys, recipe, "--methods", "lora", "--steps", "3")
    manifest = tmp_path / "runs" / "tiny-compare" / "lora" / "run.json"
    before = manifest.read_bytes()
    both = ask(capsys, recipe, "--methods", "lora,full", "--steps", "3")
    assert both["kept"] == ["lora"] and manifest.read_bytes() == before
    assert by_name(both)["lora"] == by_name(first)["lora"]
    assert compare(recipe, "--methods", "lora,full", "--steps", "3") == 0
    err = capsys.readouterr().err
    assert "lora: finished before" in err and "full: finished before" in err
    assert "step " not in err


def test_a_finished_cell_that_is_another_by_now_is_not_shown_again(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    flags = ("--methods", "lora", "--steps", "2")
    ask(capsys, recipe, *flags)
    template = tmp_path / "runs/tiny-compare/lora/adapter/chat_template.jinja"
    template.write_text(template.read_text() + "{{ 'edited' }}")
    code, error = refused(capsys, recipe, *flags)
    assert (code, error["code"]) == (1, "contract_broken")
    assert "chat template" in error["message"]


def test_other_scoring_is_another_evaluation_and_no_other_training(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    flags = ("--methods", "lora", "--steps", "3")
    first = ask(capsys, recipe, *flags)
    weights = sha256_file(tmp_path / "runs/tiny-compare/lora/adapter/adapter_model.safetensors")
    form = ("--set", "eval.format={type: regex, pattern: '.*'}", "--limit", "11")
    second = ask(capsys, recipe, *flags, *form)
    assert second["rows"] == 11 and second["kept"] == []
    assert "format_rate" in second["cells"][0]["scores"]
    assert "format_rate" not in first["cells"][0]["scores"]
    assert second["cells"][0]["train_loss"] == first["cells"][0]["train_loss"]
    adapter = tmp_path / "runs/tiny-compare/lora/adapter/adapter_model.safetensors"
    assert sha256_file(adapter) == weights


def test_a_comparison_is_never_mixed_with_another(
    recipe: Path, rows_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    flags = ("--methods", "lora", "--steps", "2")
    ask(capsys, recipe, *flags)
    code, error = refused(capsys, recipe, "--methods", "lora", "--steps", "3")
    assert (code, error["code"]) == (1, "recipe_changed")
    assert "training.max_steps: 2 → 3" in error["message"] and "--fresh" in error["message"]
    code, error = refused(capsys, recipe, *flags, "--set", "method.rank=8")
    assert code == 1 and "method.rank: 4 → 8" in error["message"]
    lines = rows_file.read_text().splitlines(keepends=True)
    rows_file.write_text("".join(lines[:-1]))
    code, error = refused(capsys, recipe, *flags)
    assert code == 1 and "(rows or tokenizer)" in error["message"]
    fresh = ask(capsys, recipe, *flags, "--fresh")
    assert fresh["folder"] == str(tmp_path / "runs" / "tiny-compare-2")
    again = ask(capsys, recipe, *flags)
    assert again["folder"] == fresh["folder"] and again["kept"] == ["lora"]


def test_another_base_under_the_same_name_is_refused(
    write_recipe: Recipe, tmp_path: Path, capsys: Capture
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = save_tiny_model(tmp_path / "base")
    recipe = write_recipe(model={"id": str(model)})
    flags = ("--methods", "lora", "--steps", "2")
    ask(capsys, recipe, *flags)
    weights = load_file(model / "model.safetensors")
    moved = {name: (w + torch.tensor(0.01)).contiguous() for name, w in weights.items()}
    save_file(moved, model / "model.safetensors", metadata={"format": "pt"})
    code, error = refused(capsys, recipe, *flags)
    assert code == 1 and f"(weights of {model})" in error["message"]


def test_what_one_method_cannot_do_is_a_row_with_the_reason(recipe: Path, capsys: Capture) -> None:
    flags = ("--methods", "full,lora", "--steps", "2", "--set", "model.dtype=fp32")
    found = ask(capsys, recipe, *flags)
    cells = by_name(found)
    assert cells["full"]["state"] == "failed" and cells["lora"]["state"] == "finished"
    assert "training.precision" in cells["full"]["reason"]
    assert found["base"]["four_bit"] is False
    assert compare(recipe, *flags) == 0
    out, err = capsys.readouterr()
    assert "  full: not trained: " in out and "warning: full: " in err
    assert "- full: " in (Path(found["folder"]) / "compare.md").read_text()


def test_a_mixture_of_experts_is_compared_by_what_it_can_take(
    write_recipe: Recipe, tmp_path: Path, capsys: Capture
) -> None:
    model = save_tiny_model(tmp_path / "moe", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    recipe = write_recipe(model={"id": str(model)})
    cells = by_name(ask(capsys, recipe, "--methods", "lora,full", "--steps", "2"))
    assert cells["full"]["state"] == "finished"
    assert "mixture of experts" in cells["lora"]["reason"]


def test_where_nothing_can_be_trained_the_reasons_are_the_error(
    recipe: Path, capsys: Capture
) -> None:
    flags = ("--methods", "full", "--set", "model.dtype=fp32")
    code, error = refused(capsys, recipe, *flags)
    assert (code, error["code"]) == (1, "compare_failed")
    assert "none of the methods could be trained:\n  full: " in error["message"]


@pytest.mark.slow
def test_a_grid_marks_the_best_rate_of_each_method(recipe: Path, capsys: Capture) -> None:
    flags = ("--methods", "lora,full", "--steps", "3", "--learning-rates", "1e-2,1e-5")
    found = ask(capsys, recipe, *flags)
    assert list(by_name(found)) == ["lora-1e-2", "lora-1e-5", "full-1e-2", "full-1e-5"]
    for method in ("lora", "full"):
        cells = [cell for cell in found["cells"] if cell["method"] == method]
        best = min(cells, key=lambda cell: cell["validation_loss"])
        assert [cell["name"] for cell in cells if cell["best_rate"]] == [best["name"]]
    assert compare(recipe, *flags) == 0
    out = capsys.readouterr().out
    assert out.count(" *") == 3 and "* the best rate of its method, by validation loss" in out


@pytest.mark.slow
def test_seconds_give_each_method_the_steps_that_fit(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    flags = ("--methods", "lora,prompt", "--seconds", "1", "--learning-rates", "1e-3,1e-4")
    found = ask(capsys, recipe, *flags)
    kept = json.loads((tmp_path / "runs/tiny-compare/budget.json").read_text())
    assert found["budget"] == {"kind": "seconds", "value": 1.0}
    for method in ("lora", "prompt"):
        budget = kept[f"{method}, 1 s"]
        assert budget["steps"] == max(1, int(1 / budget["step_seconds"]))
        steps = {cell["steps"] for cell in found["cells"] if cell["method"] == method}
        assert steps == {budget["steps"]}, "the same for every rate"
    again = ask(capsys, recipe, *flags)
    assert len(again["kept"]) == 4
    assert json.loads((tmp_path / "runs/tiny-compare/budget.json").read_text()) == kept
    other = [flag if flag != "1" else "2" for flag in flags]
    code, error = refused(capsys, recipe, *other)
    assert (code, error["code"]) == (1, "recipe_changed")
    assert "→ what fits into 2 s (lora)" in error["message"]


def test_a_general_text_of_ones_own(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    flags = ("--methods", "lora", "--steps", "2")
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    other.write_text("Red mug.")
    first = ask(capsys, recipe, *flags)
    assert first["general_text"] == f"{text}, 2 passages, 10 words"
    second = ask(capsys, recipe, *flags, "--general-text", str(other))
    assert second["general_text"] == f"{other}, 1 passage, 2 words" and second["kept"] == []
    assert second["base"]["general_perplexity"] != first["base"]["general_perplexity"]
    code, error = refused(capsys, recipe, "--general-text", str(tmp_path / "none.txt"))
    assert code == 1 and error["message"].endswith("none.txt: no such file")


def stop_in(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT while the second step of this method is logged."""
    from ftcli.engine.callbacks import Course

    original = Course.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any, **rest: Any) -> None:
        original(self, args, state, control, logs=logs, **rest)
        if self.plan.estimated.mode == method and state.global_step == 2 and "loss" in logs:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Course, "on_log", on_log)


@pytest.mark.slow
def test_a_stopped_comparison_says_how_to_go_on_and_ends_as_an_unstopped_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    flags = ("--methods", "lora,full", "--steps", "6", "--set", "training.seed=7")
    with monkeypatch.context() as patch:
        stop_in("full", patch)
        assert compare(recipe, *flags) == 130
    err = capsys.readouterr().err
    assert "Traceback" not in err
    command = f"--steps 6 --general-text {tmp_path}/text.txt --one-process --set training.seed=7"
    assert err.rstrip().endswith(f"tiny.yaml --methods lora,full {command}")
    folder = tmp_path / "runs" / "tiny-compare"
    assert json.loads((folder / "full" / "run.json").read_text())["state"] == "stopped"
    resumed = ask(capsys, recipe, *flags)
    assert resumed["kept"] == ["lora"]
    fresh = ask(capsys, recipe, *flags, "--fresh")
    for name in ("lora/adapter/adapter_model.safetensors", "full/model/model.safetensors"):
        assert sha256_file(folder / name) == sha256_file(Path(fresh["folder"]) / name)
    for name, cell in by_name(resumed).items():
        assert cell["scores"] == by_name(fresh)[name]["scores"]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--methods", "lroa"], "method_unknown", "no method 'lroa'; did you mean lora?"),
        (["--methods", ","], "flag", "--methods names none"),
        (["--steps", "2", "--seconds", "3"], "flag", "two budgets"),
        (["--learning-rates", "fast"], "flag", "expected numbers, as 1e-4,1e-3"),
        (["--learning-rates", "3"], "recipe", "must be below 1"),
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
    exit_code, error = refused(capsys, recipe, *flags)
    assert (exit_code, error["code"]) == (2, code)
    assert words in error["message"]
    assert not (tmp_path / "runs").exists()


def test_a_model_that_is_nowhere_is_told_once_before_any_work(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    code, error = refused(capsys, recipe, "--set", "model.id=../no")
    assert (code, error["code"], error["file"]) == (1, "model_missing", "--set model.id=../no")
    assert not (tmp_path / "runs").exists()


def test_data_that_cannot_be_used_end_the_comparison(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": ""}\n')
    code, error = refused(capsys, recipe, "--methods", "lora")
    assert (code, error["code"]) == (1, "data_empty")
    assert "completion is empty" in error["message"]


def test_validation_rows_that_are_the_held_out_ones_are_said_to_be(
    write_recipe: Recipe, capsys: Capture
) -> None:
    recipe = write_recipe(data={"train": "rows.jsonl", "validation": 12})
    assert compare(recipe, "--methods", "lora", "--steps", "2") == 0
    assert "these rows chose the checkpoints" in capsys.readouterr().out


@pytest.mark.slow
def test_each_cell_in_a_process_of_its_own(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ftcli", "compare", str(recipe), "--methods", "lora"]
    done = subprocess.run(
        [*command, "--steps", "2", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    validate(found, SHAPES["compare"])
    [cell] = found["cells"]
    assert cell["one_process"] is False and cell["peak_memory_bytes"] > 0
    assert "lora (1 of 1)" in done.stderr and "≤" not in done.stderr
