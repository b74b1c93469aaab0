"""A recipe with changed keys: the values, and the text around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftcli.config.loader import load_recipe, with_absolute_paths
from ftcli.config.rewriting import changed, rewritten
from ftcli.errors import FtcliError, UsageError
from ftcli.training.estimate.overrides import with_flags

SHIPPED = Path(__file__).resolve().parents[2] / "recipes" / "ecommerce-lora.yaml"
RECIPE = """\
# yaml-language-server: $schema=x.json
# What the shop needs
name: "shop"   # quoted
model: {id: 7b, dtype: bf16}
method:
    mode: lora
    rank: 64     # big
    # which layers
    target_modules:
      - q_proj
      - v_proj   # values
      - up_proj

data:
  train: shop.jsonl
  system: |
    Write the listing.
      As a list.
  prompt: 'It''s {name}'
  completion: "a\\tb"

training:
  batch_size: 0x10
  learning_rate: 1e-4   # YAML reads it as a text
  warmup_ratio: 3.0e-2
# the end
"""


def after(text: str, settings: dict[str, Any], tmp_path: Path) -> str:
    file = tmp_path / "shop.yaml"
    file.write_text(text)
    wanted = with_absolute_paths(changed(load_recipe(file).recipe, settings), tmp_path)
    return rewritten(text, settings, wanted, tmp_path)


def differences(old: str, new: str) -> tuple[list[str], list[str]]:
    before, now = old.splitlines(), new.splitlines()
    gone = [line for line in before if line not in now]
    return gone, [line for line in now if line not in before]


def test_nothing_else_changes(tmp_path: Path) -> None:
    assert after(RECIPE, {}, tmp_path) == RECIPE
    new = after(RECIPE, {"method.rank": 8, "training.seed": 7}, tmp_path)
    gone, come = differences(RECIPE, new)
    assert gone == ["    rank: 64     # big"]
    assert come == ["    rank: 8      # big", "  seed: 7"]
    assert new.endswith("  warmup_ratio: 3.0e-2\n  seed: 7\n# the end\n")
    longer = after(RECIPE, {"data.max_length": 99}, tmp_path)
    assert '  completion: "a\\tb"\n  max_length: 99\n\ntraining:' in longer


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"model.attention": "sdpa"}, "model: {id: 7b, dtype: bf16, attention: sdpa}"),
        ({"method.mode": "qlora"}, "    mode: qlora"),
        ({"method.alpha": 16.0}, "    alpha: 16"),
        ({"training.gradient_checkpointing": True}, "  gradient_checkpointing: true"),
        ({"data.max_length": 1_000_000}, "  max_length: 1000000"),
        ({"data.test": "12"}, '  test: "12"'),
        ({"data.template": "a: b.jinja"}, '  template: "a: b.jinja"'),
        ({"model.revision": None}, "model: {id: 7b, dtype: bf16, revision: null}"),
        ({"generation.top_k": 5}, "generation:"),
    ],
)
def test_a_value_is_written_as_yaml_reads_it(
    settings: dict[str, Any], line: str, tmp_path: Path
) -> None:
    new = after(RECIPE, settings, tmp_path)
    assert line in new.splitlines()
    assert new.startswith(RECIPE[: RECIPE.index("model:")])
    for comment in ("# quoted", "# big", "# which layers", "# values", "# YAML reads", "# the end"):
        assert comment in new


def test_a_list_gets_shorter_where_it_stands(tmp_path: Path) -> None:
    new = after(RECIPE, {"method.target_modules": ["q_proj", "v_proj"]}, tmp_path)
    assert "    target_modules:\n      - q_proj\n      - v_proj" in new
    assert "up_proj" not in new
    assert "\n\ndata:" in new


def test_a_list_where_none_was_stands_on_one_line(tmp_path: Path) -> None:
    plain = RECIPE[: RECIPE.index("    # which")] + RECIPE[RECIPE.index("\ndata:") :]
    new = after(plain, {"method.target_modules": ["q_proj", "v_proj"]}, tmp_path)
    assert "    target_modules: [q_proj, v_proj]" in new.splitlines()


def test_another_method_keeps_only_its_own_keys(tmp_path: Path) -> None:
    new = after(RECIPE, {"method.mode": "full"}, tmp_path)
    assert "rank" not in new and "target_modules" not in new
    full = RECIPE[: RECIPE.index("method:")] + "method: {mode: full}\n"
    full += RECIPE[RECIPE.index("data:") :]
    assert "method: {mode: qlora, rank: 8}" in after(
        full, {"method.mode": "qlora", "method.rank": 8}, tmp_path
    )


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    windows = RECIPE.replace("\n", "\r\n")
    new = after(windows, {"method.rank": 8}, tmp_path)
    assert new.count("\r\n") == new.count("\n") == RECIPE.count("\n")


def test_keys_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(RECIPE)
    with pytest.raises(UsageError, match="micro_batch_size 3 does not divide batch_size 16"):
        changed(load_recipe(file).recipe, {"training.micro_batch_size": 3})


@pytest.mark.parametrize(
    "recipe", sorted(SHIPPED.parent.glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_that_ships_keeps_all_but_the_change(recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.yaml"
    with_flags(load_recipe(recipe), None, {}, None).write({"training.batch_size": 3}, target)
    gone, come = differences(recipe.read_text(), target.read_text())
    paths = ("train:", "test:", "validation:", "output:", "template:")
    moved = [line for line in gone if line.strip().startswith(paths)]
    assert [line for line in gone if line not in moved and "batch_size" not in line] == []
    assert len(come) <= len(moved) + 1
    written, shipped = load_recipe(target).recipe, load_recipe(recipe).recipe
    assert (written.data.train, written.output) == (shipped.data.train, shipped.output)


def test_only_the_recipe_itself_is_written_over(tmp_path: Path) -> None:
    file, other = tmp_path / "shop.yaml", tmp_path / "other.yaml"
    file.write_text(RECIPE)
    other.write_text("mine")
    loaded = load_recipe(file)
    with pytest.raises(FtcliError, match="the file exists") as caught:
        with_flags(loaded, None, {}, None).write({"method.rank": 8}, other)
    assert (caught.value.code, caught.value.exit_code) == ("exists", 1)
    assert other.read_text() == "mine"
    assert with_flags(loaded, None, {}, None).write({"method.rank": 8}, file) == file
    assert load_recipe(file).recipe.method == changed(loaded.recipe, {"method.rank": 8}).method


def test_set_and_flags_are_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, target = tmp_path / "shop.yaml", tmp_path / "new.yaml"
    file.write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(file, ["training.epochs=2", "data={train: b.jsonl, max_length: 99}"])
    flags = {"rank": 8, "target_modules": ("q_proj",), "precision": "bf16", "packing": False}
    with_flags(loaded, "1b", flags, None).write({"training.optimizer": "adamw-8bit"}, target)
    new = load_recipe(target).recipe
    assert (new.training.epochs, new.data.max_length) == (2, 99)
    assert "  train: b.jsonl" in target.read_text().splitlines()
    assert new.model.id == "1b" and new.training.optimizer == "adamw-8bit"
    assert new.method.model_dump(exclude_unset=True) == {
        "mode": "lora",
        "rank": 8,
        "target_modules": ["q_proj"],
    }


@pytest.mark.parametrize(
    ("template", "path"), [("gemma", "gemma"), ("chat.jinja", "../chat.jinja")]
)
def test_a_template_moves_where_it_is_a_file(template: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "gemma").mkdir()
    (tmp_path / "chat.jinja").touch()
    (tmp_path / "below").mkdir()
    file, target = tmp_path / "shop.yaml", tmp_path / "below" / "new.yaml"
    file.write_text(
        RECIPE.replace("train: shop.jsonl", f"train: shop.jsonl\n  template: {template}")
    )
    with_flags(load_recipe(file), None, {}, None).write({}, target)
    lines = target.read_text().splitlines()
    assert f"  template: {path}" in lines and "  train: ../shop.jsonl" in lines
