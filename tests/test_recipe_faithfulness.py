"""`eval.faithfulness` of a recipe: what may be written, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.errors import RecipeError
from ftcli.loading import Loaded, load_recipe, resolved
from ftcli.recipe import Faithfulness

RECIPE = """\
name: shop
model: {id: here}
method: {mode: full}
data: {train: rows.jsonl}
eval:
  faithfulness:
"""


def written(folder: Path, keys: str) -> Path:
    path = folder / "shop.yaml"
    path.write_text(RECIPE + "".join(f"    {line}\n" for line in keys.splitlines()))
    return path


def loaded(folder: Path, keys: str) -> Loaded:
    return load_recipe(written(folder, keys))


def test_every_key_has_a_default(tmp_path: Path) -> None:
    wanted = loaded(tmp_path, "kinds: [number, material, colour, size, brand]").recipe.eval
    assert wanted.faithfulness == Faithfulness()
    assert wanted.faithfulness.banned == wanted.faithfulness.ignore == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("facts: '('", "eval.faithfulness.facts: not a regular expression"),
        ("kinds: []", "eval.faithfulness.kinds: names nothing to look at"),
        ("kinds: [color]", "eval.faithfulness.kinds"),
        ("banned: never", "eval.faithfulness.banned: 'never' is no .txt file"),
        ("banned: ['']", "eval.faithfulness.banned: holds an empty word"),
        ("allowed: ['  ']", "eval.faithfulness.allowed: holds an empty word"),
        ("colors: [red]", "eval.faithfulness.colors: unknown key; did you mean colours?"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, keys: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        loaded(tmp_path, keys)
    (problem, *_) = raised.value.problems
    assert problem.line == 7
    assert message in f"{problem.key}: {problem.message}"


def test_the_list_of_banned_claims_holds_wherever_the_recipe_is_put(tmp_path: Path) -> None:
    (tmp_path / "never.txt").write_text("waterproof\n")
    moved = resolved(loaded(tmp_path, "banned: never.txt")).eval.faithfulness
    assert moved is not None and moved.banned == str(tmp_path / "never.txt")
    phrases = resolved(loaded(tmp_path, "banned: [never.txt]")).eval.faithfulness
    assert phrases is not None and phrases.banned == ["never.txt"]
    json.dumps(moved.model_dump(mode="json"))
