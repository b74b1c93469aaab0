"""Files that only the evaluation needs: looked at before anything long begins, found by `--set`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.config.loader import load_recipe
from ftcli.errors import DataError
from ftcli.evaluation.scoring import require_scored_files

COMMANDS = [
    ["prepare"],
    ["train"],
    ["train", "--dry-run"],
    ["train", "--smoke-test"],
]
NAMED = {
    "eval.format.table": {"format": {"type": "sql", "table": "nosuch.csv"}},
    "eval.format.schema": {"format": {"type": "json", "schema": "nosuch.csv"}},
    "eval.grounding.banned": {"grounding": {"banned": "nosuch.txt"}},
}
WriteRecipe = Callable[..., Path]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_file_that_is_missing_is_named_before_any_row_is_read(
    command: list[str],
    write_recipe: WriteRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *flags = command
    for key, section in NAMED.items():
        recipe = write_recipe(eval=section)
        assert run([name, recipe.name, *flags]) == 1
        said = capsys.readouterr().err
        file = "nosuch.txt" if "banned" in key else "nosuch.csv"
        assert f"tiny.yaml:{line_of(recipe, file)}: {key}: {file}: no such file" in said
        assert ".tmp-" not in said and "Traceback" not in said
        assert not list((tmp_path / "runs").rglob("*"))


def line_of(recipe: Path, word: str) -> int:
    lines = recipe.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if word in line)


@pytest.mark.parametrize(
    ("section", "content", "code", "words"),
    [
        ({"format": {"type": "json", "schema": "a.json"}}, "{", "answer_schema", "not JSON"),
        (
            {"format": {"type": "json", "schema": "a.json"}},
            '{"type": "objekt"}',
            "answer_schema",
            "did you mean object?",
        ),
        ({"format": {"type": "sql", "table": "a.csv"}}, "", "answer_table", "has no row"),
        ({"format": {"type": "sql", "table": "a.pdf"}}, "x", "answer_table", "neither csv"),
        ({"grounding": {"banned": "a.txt"}}, b"\xff", "banned_phrases", "not UTF-8"),
    ],
)
def test_their_contents_are_checked_too(
    section: dict[str, Any],
    content: str | bytes,
    code: str,
    words: str,
    write_recipe: WriteRecipe,
    tmp_path: Path,
) -> None:
    loaded = load_recipe(write_recipe(eval=section))
    [inner] = section.values()
    name = inner.get("schema") or inner.get("table") or inner["banned"]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        require_scored_files(loaded)
    assert caught.value.code == code and (caught.value.file or "").endswith(name)


def test_valid_files_pass(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.txt").write_text("cures everything\n")
    (tmp_path / "a.json").write_text('{"type": "object"}')
    for form in ({"type": "sql", "table": "a.csv"}, {"type": "json", "schema": "a.json"}):
        section = {"format": form, "grounding": {"banned": "a.txt"}}
        require_scored_files(load_recipe(write_recipe(eval=section)))
    require_scored_files(load_recipe(write_recipe(eval={"format": {"type": "sql"}})))
    prompt = {"format": {"type": "sql", "table": "prompt"}}
    require_scored_files(load_recipe(write_recipe(eval=prompt)))


# --set


FLAGS = {
    "eval.format.table": ("eval.format={type: sql, table: a.csv}", "a,b\n1,2\n"),
    "eval.format.schema": ("eval.format={type: json, schema: a.csv}", "{}"),
    "eval.grounding.banned": ("eval.grounding.banned=a.txt", "cures\n"),
}


@pytest.mark.parametrize("key", list(FLAGS))
def test_a_file_of_a_flag_is_relative_to_the_working_directory(
    key: str, write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, content = FLAGS[key]
    recipe, here = write_recipe(), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    name = "a.txt" if "banned" in key else "a.csv"
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        require_scored_files(load_recipe(recipe, [flag]))
    assert str(caught.value) == f"--set {flag}: {key}: {name}: no such file"
    (here / name).write_text(content)
    require_scored_files(load_recipe(recipe, [flag]))
    assert named(recipe, flag) == str(here / name)


def named(recipe: Path, *flags: str) -> object:
    wanted = load_recipe(recipe, flags).recipe.eval.model_dump(mode="json")
    form, facts = wanted["format"] or {}, wanted["grounding"] or {}
    return form.get("table") or form.get("schema") or facts.get("banned")


def test_the_folder_of_a_detector_is_relative_to_the_working_directory(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "detectors" / "mine").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    recipe = write_recipe().rename(tmp_path / "recipes" / "tiny.yaml")
    by_recipe = tmp_path / "recipes" / "by-recipe.yaml"
    by_recipe.write_text(f"{recipe.read_text()}eval:\n  grounding:\n    model: detectors/mine\n")
    monkeypatch.chdir(tmp_path / "here")

    def detector(recipe: Path, *flags: str) -> str | None:
        grounding = load_recipe(recipe, flags).recipe.eval.grounding
        return grounding.model if grounding is not None else None

    here = str(tmp_path / "here" / "detectors" / "mine")
    assert detector(recipe, "eval.grounding.model=detectors/mine") == here
    assert detector(recipe, "eval.grounding={model: detectors/mine}") == here
    hub_id = "KRLabsOrg/lettucedect-base-modernbert-en-v1"
    assert detector(recipe, f"eval.grounding.model={hub_id}") == hub_id
    assert detector(by_recipe) == "detectors/mine", "of the recipe: there is no such folder there"


def test_a_file_of_the_recipe_stays_relative_to_it(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("a.csv").write_text("a\n1\n")
    recipe = write_recipe(eval={"format": {"type": "sql", "table": "a.csv"}})
    assert named(recipe, "eval.format.table_name=shop") == str(tmp_path / "a.csv")


def test_eval_of_a_run_finds_the_file_of_a_flag(
    eval_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The recipe is then that of the run folder."""
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text('{"type": "object"}')
    flag = "eval.format={type: json, schema: a.json}"
    evaluate = ["eval", str(eval_run), "--limit", "2", "--no-base", "--no-forgetting", "--json"]
    capsys.readouterr()
    assert run([*evaluate, "--set", flag]) == 0
    assert json.loads(capsys.readouterr().out)["tuned"]["format_rate"] == 0
