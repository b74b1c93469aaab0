from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ftcli.config.recipe import (
    Data,
    Full,
    JsonFormat,
    Lora,
    Qlora,
    Recipe,
    RegexFormat,
    Section,
)

SMALLEST: dict[str, Any] = {
    "name": "shop",
    "model": {"id": "smollm2-135m"},
    "method": {"mode": "lora"},
    "data": {"train": "shop.jsonl"},
}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(SMALLEST | sections)


def reason(section: type[BaseModel], **keys: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        section.model_validate(keys)
    return "\n".join(detail["msg"] for detail in caught.value.errors())


def sections_below(kind: type[BaseModel]) -> list[type[BaseModel]]:
    return [kind, *(below for child in kind.__subclasses__() for below in sections_below(child))]


def test_four_sections_are_a_complete_recipe() -> None:
    found = recipe()
    assert found.training.batch_size == 16
    assert found.data.validation == 0.1
    assert found.data.test == "auto"
    assert found.eval.format is None


@pytest.mark.parametrize("kind", sections_below(Section), ids=lambda kind: kind.__name__)
def test_every_section_is_frozen_and_forbids_the_rest(kind: type[BaseModel]) -> None:
    assert kind.model_config["extra"] == "forbid"
    assert kind.model_config["frozen"] is True
    assert kind.model_config["allow_inf_nan"] is False


def test_a_recipe_never_changes_after_loading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe().training.epochs = 5  # type: ignore[misc]


# A plan's sections have the keys of these.
WRITTEN = [kind for kind in sections_below(Section) if kind.__module__.startswith("ftcli.config.")]


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_every_key_is_explained(kind: type[BaseModel]) -> None:
    own_names = {"mode", "type", "model", "method", "data", "training", "generation", "eval"}
    silent = [
        name
        for name, field in kind.model_fields.items()
        if not field.description and name not in own_names
    ]
    assert silent == []


def test_a_mode_chooses_the_class_and_its_keys() -> None:
    assert isinstance(recipe(method={"mode": "full"}).method, Full)
    assert isinstance(recipe(method={"mode": "lora"}).method, Lora)
    assert isinstance(recipe(method={"mode": "qlora"}).method, Qlora)
    with pytest.raises(ValidationError, match="Extra inputs"):
        recipe(method={"mode": "full", "rank": 8})
    with pytest.raises(ValidationError, match="Extra inputs"):
        recipe(method={"mode": "lora", "double_quantization": True})


@pytest.mark.parametrize(
    ("written", "meant"),
    [(0, 0), (0.1, 0.1), (24, 24), (24.0, 24), ("1e-1", 0.1), ("2e1", 20), ("a.csv", "a.csv")],
)
def test_rows_are_held_out_by_share_count_or_file(written: object, meant: object) -> None:
    assert Data.model_validate({"train": "a", "validation": written}).validation == meant


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (1.5, "1.5 is neither a share below 1 nor a whole number of rows"),
        (-1, "-1 is neither"),
        ("-1e-1", "-0.1 is neither"),
        (float("inf"), "inf is neither"),
        (float("nan"), "nan is neither"),
        (True, "expected a share, a number of rows or a file, found true"),
        (None, "expected a share, a number of rows or a file, found null"),
        ([1], "expected a share, a number of rows or a file, found [1]"),
    ],
)
def test_other_hold_outs_are_refused(written: object, words: str) -> None:
    assert words in reason(Data, train="a", validation=written)


def test_columns_keys_go_together() -> None:
    both = {"prompt": "q", "completion": "a"}
    assert Data.model_validate({"train": "a", "format": "auto", **both}).prompt == "q"
    assert Data.model_validate({"train": "a", "format": "columns", **both}).completion == "a"
    assert reason(Data, train="a", prompt="q") == (
        "Value error, data.prompt names a column or template, and data.completion is missing; "
        "give both"
    )
    assert reason(Data, train="a", completion="a") == (
        "Value error, data.completion names a column or template, and data.prompt is missing; "
        "give both"
    )


@pytest.mark.parametrize("given", [{}, {"prompt": "q"}, {"completion": "a"}])
def test_the_format_columns_needs_both(given: dict[str, str]) -> None:
    assert reason(Data, train="a", format="columns", **given) == (
        "Value error, format columns needs data.prompt and data.completion"
    )


@pytest.mark.parametrize("name", ["pairs", "messages", "sharegpt", "alpaca", "text"])
@pytest.mark.parametrize("given", [{"prompt": "q"}, {"prompt": "q", "completion": "a"}])
def test_another_format_would_pass_over_them(name: str, given: dict[str, str]) -> None:
    assert reason(Data, train="a", format=name, **given) == (
        "Value error, data.prompt and data.completion need format columns or auto, found format "
        f"{name}"
    )


@pytest.mark.parametrize("name", ["shop", "no", "a b", "v1.0", ".hidden", "…", "007"])
def test_a_name_can_be_a_folder(name: str) -> None:
    assert recipe(name=name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "../up", "a\nb", "a\x00b"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="String should"):
        recipe(name=name)


def test_a_pattern_has_to_compile() -> None:
    assert RegexFormat(type="regex", pattern="a+").pattern == "a+"
    assert reason(RegexFormat, type="regex", pattern="(") == (
        "Value error, not a regular expression: missing ), unterminated subpattern at position 0"
    )


def test_the_form_of_answers_is_chosen_by_type() -> None:
    wanted = recipe(eval={"format": {"type": "json", "keys": ["a"]}}).eval.format
    assert wanted == JsonFormat(type="json", keys=["a"])
    with pytest.raises(ValidationError):
        recipe(eval={"format": {"type": "json", "pattern": "a"}})


def test_a_recipe_survives_json() -> None:
    first = recipe(method={"mode": "qlora", "rank": 8}, training={"learning_rate": 1e-5})
    assert Recipe.model_validate(json.loads(first.model_dump_json())) == first
