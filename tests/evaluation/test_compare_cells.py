"""From a recipe to the cells of a comparison, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ftcli.config.loader import dump_recipe, load_recipe
from ftcli.config.recipe import Bottleneck, Lora, PrefixTuning, PromptTuning, Qlora, has_4_bit_base
from ftcli.errors import RecipeError, UsageError
from ftcli.evaluation.compare.cells import (
    METHODS,
    Cell,
    CompareOptions,
    cells_of,
    require_methods,
    short_rate,
)
from ftcli.training.plan.learning_rate import choose_learning_rate

LORA = {"mode": "lora", "rank": 4, "target_modules": ["q_proj"]}


def cells(
    folder: Path, method: dict[str, Any], *overrides: str, rate: object = "1e-3", **asked: Any
) -> dict[str, Cell]:
    recipe = {
        "name": "shop",
        "model": {"id": "smollm2-135m"},
        "method": method,
        "data": {"train": "rows.jsonl"},
        "training": {"epochs": 2, "learning_rate": rate},
    }
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump(recipe))
    (folder / "rows.jsonl").write_text("{}\n")
    found = cells_of(CompareOptions(path, overrides, **asked), folder / "cells")
    return {cell.name: cell for cell in found}


def test_keys_go_to_the_recipes_own_method_and_to_its_sibling(tmp_path: Path) -> None:
    found = cells(tmp_path, LORA)
    assert list(found) == list(METHODS)
    assert found["lora"].recipe.method == Lora(mode="lora", rank=4, target_modules=["q_proj"])
    assert found["qlora"].recipe.method == Qlora(mode="qlora", rank=4, target_modules=["q_proj"])
    assert found["bottleneck"].recipe.method == Bottleneck(mode="bottleneck")


def test_keys_that_two_methods_share_by_name_alone_are_not_handed_on(tmp_path: Path) -> None:
    found = cells(tmp_path, {"mode": "prefix-tuning", "virtual_tokens": 7, "quantization": "nf4"})
    assert found["prefix-tuning"].recipe.method.model_dump()["virtual_tokens"] == 7
    assert found["prompt-tuning"].recipe.method == PromptTuning(mode="prompt-tuning")
    assert [name for name, cell in found.items() if has_4_bit_base(cell.recipe.method)] == [
        "qlora",
        "prefix-tuning",
    ]


def test_a_set_key_reaches_every_method_that_has_it(tmp_path: Path) -> None:
    found = cells(tmp_path, LORA, "method.virtual_tokens=5", "method.rank=8")
    assert found["prefix-tuning"].recipe.method == PrefixTuning(
        mode="prefix-tuning", virtual_tokens=5
    )
    assert found["prompt-tuning"].recipe.method == PromptTuning(
        mode="prompt-tuning", virtual_tokens=5
    )
    ranks = [found[name].recipe.method.model_dump()["rank"] for name in ("lora", "qlora")]
    assert ranks == [8, 8]
    assert found["full"].recipe.method.model_dump() == {"mode": "full"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.rnak=8", "did you mean rank?"),
        ("method.mode=full", "--methods names the methods"),
        ("method={mode: full}", "--methods names the methods"),
        ("method.rank=0", "--set method.rank=0: method.rank: must be at least 1, found 0"),
    ],
)
def test_a_set_key_that_no_method_can_take(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        cells(tmp_path, LORA, override)
    assert words in str(caught.value)


def test_the_recipes_rate_is_its_own_methods(tmp_path: Path) -> None:
    found = cells(tmp_path, LORA)
    rates = {name: choose_learning_rate(cell.recipe)[0] for name, cell in found.items()}
    assert rates["lora"] == rates["qlora"] == 1e-3
    own = {
        name: choose_learning_rate(c.recipe)[0]
        for name, c in cells(tmp_path, LORA, rate="auto").items()
    }
    for name in ("full", "bottleneck", "prefix-tuning", "prompt-tuning"):
        assert rates[name] == own[name], "its default"
    assert own["lora"] != 1e-3


def test_a_grid_gives_every_method_every_rate(tmp_path: Path) -> None:
    found = cells(tmp_path, LORA, methods=("lora", "full"), learning_rates=(1e-4, 2.5e-3))
    assert list(found) == ["lora-1e-4", "lora-2.5e-3", "full-1e-4", "full-2.5e-3"]
    assert [c.recipe.training.learning_rate for c in found.values()] == [1e-4, 2.5e-3] * 2
    with pytest.raises(RecipeError, match=r"learning_rate.*must be below 1"):
        cells(tmp_path, LORA, learning_rates=(2.0,))


def test_a_cell_is_a_whole_recipe_wherever_it_is_put(tmp_path: Path) -> None:
    found = cells(tmp_path, LORA, steps=60)
    for cell in found.values():
        assert cell.recipe.training.max_steps == 60
        assert cell.run.path == tmp_path / "cells" / cell.name
        assert cell.file == tmp_path / "cells" / f"{cell.name}.yaml"
        cell.file.parent.mkdir(exist_ok=True)
        cell.file.write_text(dump_recipe(cell.recipe))
        read = load_recipe(cell.file)
        assert read.recipe == cell.recipe
        assert read.recipe.data.train == str(tmp_path / "rows.jsonl")
        assert read.output == cell.run.path
    seeds = {cell.recipe.training.seed for cell in found.values()}
    data = {cell.recipe.data.model_dump_json() for cell in found.values()}
    assert len(seeds) == len(data) == 1


def test_without_a_budget_the_recipes_own_length_stays(tmp_path: Path) -> None:
    for cell in cells(tmp_path, LORA).values():
        assert cell.recipe.training.max_steps is None and cell.recipe.training.epochs == 2


def test_methods_are_known_and_each_is_taken_once() -> None:
    assert require_methods(("lora", "full", "lora")) == ("lora", "full")
    with pytest.raises(UsageError, match="no method 'lroa'; did you mean lora"):
        require_methods(("full", "lroa"))
    with pytest.raises(UsageError, match="names no method"):
        require_methods(())


@pytest.mark.parametrize(
    ("rate", "text"), [(1e-4, "1e-4"), (2.5e-3, "2.5e-3"), (0.3, "3e-1"), (0.00012345, "1.2345e-4")]
)
def test_a_rate_in_few_signs(rate: float, text: str) -> None:
    assert short_rate(rate) == text
    assert float(text) == rate
