"""Recipes as YAML: read back and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcli.config.loader import differences, dump_recipe, load_recipe, with_absolute_paths
from ftcli.config.recipe import Recipe
from tests.config.shop import SHOP, load, more

# Round trip


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
keys = st.text(max_size=10).filter(lambda key: key and key.isprintable())
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/\\"),
    min_size=1,
    max_size=20,
).filter(lambda name: name.strip("."))
shares = st.floats(0, 0.99) | st.integers(0, 10_000)
recipes = st.fixed_dictionaries(
    {
        "name": names,
        "model": st.fixed_dictionaries({"id": texts}),
        "method": st.sampled_from([{"mode": "full"}, {"mode": "qlora", "dropout": 0.05}])
        | st.fixed_dictionaries(
            {
                "mode": st.just("lora"),
                "rank": st.integers(1, 512),
                "alpha": st.floats(1e-6, 1e6),
                "target_modules": st.lists(texts, min_size=1, max_size=3),
            }
        ),
        "data": st.fixed_dictionaries(
            {"train": texts, "validation": shares},
            optional={
                "system": texts,
                "template_kwargs": st.dictionaries(
                    keys, texts | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9), max_size=3
                ),
            },
        ),
        "training": st.fixed_dictionaries(
            {}, optional={"learning_rate": st.floats(1e-9, 0.9), "epochs": st.floats(0.01, 100)}
        ),
        "eval": st.just({}) | st.just({"format": {"type": "json", "keys": ["a: b", "no", "1"]}}),
    },
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(recipes)
def test_what_is_dumped_is_read_back(here: Path, values: dict[str, Any]) -> None:
    whole = with_absolute_paths(Recipe.model_validate(values), here)
    assert load(dump_recipe(whole)).recipe == whole


def test_a_loaded_recipe_holds_wherever_it_is_put(here: Path) -> None:
    for name in ("shop.jsonl", "held-out.csv", "chat.jinja"):
        (here / name).touch()
    (here / "tiny").mkdir()
    text = SHOP.replace("smollm2-135m", "tiny") + (
        "  validation: held-out.csv\n  test: 12\n  template: chat.jinja\noutput: runs/a\n"
    )
    whole = load(text).recipe
    assert whole.model.id == str(here / "tiny")
    assert whole.data.train == str(here / "shop.jsonl")
    assert whole.data.validation == str(here / "held-out.csv")
    assert whole.data.test == 12
    assert whole.data.template == str(here / "chat.jinja")
    assert whole.output == str(here / "runs" / "a")
    elsewhere = here / "runs" / "a" / "recipe.yaml"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text(dump_recipe(whole))
    again = load_recipe(elsewhere)
    assert again.recipe == whole
    assert again.output == here / "runs" / "a"


@pytest.mark.parametrize("template", ["plain", "{{ a }}", "{% if a %}\n{% endif %}\n" * 99])
def test_a_template_that_is_no_file_stays_as_it_is(here: Path, template: str) -> None:
    (here / "plain").mkdir()
    recipe = load(SHOP).recipe
    data = recipe.data.model_copy(update={"template": template})
    whole = with_absolute_paths(recipe.model_copy(update={"data": data}), here)
    assert whole.data.template == template
    assert load(dump_recipe(whole)).recipe.data.template == template


def test_a_hub_id_stays_one() -> None:
    text = SHOP.replace("smollm2-135m", "Qwen/Qwen2.5-7B-Instruct")
    whole = load(text.replace("shop.jsonl", "shop/rows")).recipe
    assert whole.model.id == "Qwen/Qwen2.5-7B-Instruct"
    assert whole.data.train == "shop/rows"
    Path("shop").mkdir()
    assert load(text.replace("shop.jsonl", "shop/rows")).recipe.data.train.startswith("/")


def test_paths_of_flags_start_at_the_working_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "shop.yaml").write_text(SHOP)
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    flags = ["data.train=rows.jsonl", "data={train: a/../b.jsonl}", "data.test=~/held-out.csv"]
    whole = load_recipe(Path("../shop.yaml"), flags).recipe
    assert whole.data.train == str(here / "below" / "b.jsonl")
    assert whole.data.test == str(here / "home" / "held-out.csv")
    assert whole.output == str(here / "runs" / "shop")


def test_a_link_before_a_step_up_is_followed(here: Path) -> None:
    (here / "far" / "below").mkdir(parents=True)
    (here / "link").symlink_to(here / "far" / "below")
    data = load(SHOP.replace("shop.jsonl", "link/../shop.jsonl")).recipe.data
    assert data.train == str((here / "far" / "shop.jsonl").resolve())


def test_a_dump_writes_every_default_out() -> None:
    values = yaml.safe_load(dump_recipe(load(SHOP).recipe))
    assert set(values) == set(Recipe.model_fields)
    assert values["training"]["batch_size"] == 16
    assert values["method"]["rank"] == 16


# Differences


def test_differences_name_old_and_new() -> None:
    old = load(SHOP, "output=a").recipe
    flags = ("method.rank=8", "training.epochs=5", "data.system=Hi", "name=other", "output=b/../a")
    new = load(SHOP, *flags).recipe
    assert differences(old, old, set()) == []
    assert differences(old, new, set()) == [
        "name: shop → other",
        "method.rank: 16 → 8",
        "data.system: null → Hi",
        "training.epochs: 3.0 → 5.0",
    ]
    assert differences(old, new, {"name", "training", "data.system"}) == ["method.rank: 16 → 8"]
    assert differences(old, new, {"nam", "train"}) == differences(old, new, set())


def test_differences_see_keys_of_one_side_only() -> None:
    lora = load(SHOP).recipe
    full = load(SHOP.replace("lora", "full")).recipe
    found = differences(lora, full, set())
    assert "method.mode: lora → full" in found
    assert "method.rank: 16 → null" in found
    formed = load(more("eval:\n  format:\n    type: json\n")).recipe
    assert "eval.format.type: null → json" in differences(lora, formed, set())
