from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ftcli.cli import run
from ftcli.config.recipe import Recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").rglob("*.y*ml"))


class EditorLoader(yaml.SafeLoader):
    """Editors read YAML 1.2, in which 1e-4 is a number."""


EditorLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["schema"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


def as_editors_read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.load(path.read_text("utf-8"), Loader=EditorLoader)
    return values


def test_it_is_json_schema(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$schema"]
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_accepts_what_ships(schema: dict[str, Any], path: Path) -> None:
    faults = Draft202012Validator(schema).iter_errors(as_editors_read(path))
    assert [fault.message for fault in faults] == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "nmae", "shop"),
        ("model", "di", "7b"),
        ("method", "rnak", 8),
        ("data", "max_lenght", 64),
        ("training", "epohcs", 3),
        ("training", "lr_scheduler", "cosin"),
        ("training", "batch_size", 0),
        ("training", "learning_rate", "fast"),
        ("data", "train", None),
        (None, "name", "a/b"),
        (None, "method", {"mode": "lroa"}),
    ],
)
def test_it_refuses_what_the_recipe_refuses(
    schema: dict[str, Any], section: str | None, key: str, value: object
) -> None:
    assert len(RECIPES) >= 6
    values = as_editors_read(RECIPES[0])
    assert Draft202012Validator(schema).is_valid(values)
    changed = copy.deepcopy(values)
    (changed if section is None else changed[section])[key] = value
    assert not Draft202012Validator(schema).is_valid(changed)
    with pytest.raises(ValueError, match="validation error"):
        Recipe.model_validate(changed)


def test_every_key_has_its_text_for_editors(schema: dict[str, Any]) -> None:
    parts = schema["$defs"].items()
    sections = {name: part["properties"] for name, part in parts if "properties" in part}
    assert sections["Lora"]["rank"]["description"].startswith("r: ")
    assert sections["Lora"]["rank"]["default"] == 16
    assert set(schema["properties"]) == set(Recipe.model_fields)


def text_of(capsys: pytest.CaptureFixture[str], *section: str) -> list[str]:
    assert run(["schema", "--text", *section]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_a_person_reads_keys_defaults_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    lines = text_of(capsys, "method")
    rank = lines.index("method.rank = 16")
    assert lines[rank + 1].startswith("    r: ")
    assert "method.mode (required)" in lines
    assert "method.double_quantization = true" in lines
    keys = [line for line in lines if not line.startswith(" ")]
    assert all(key.startswith("method.") for key in keys)


def test_keys_of_a_method_are_under_its_mode(capsys: pytest.CaptureFixture[str]) -> None:
    groups: dict[str, list[str]] = {}
    heading = "every mode"
    for line in text_of(capsys, "method"):
        if line.startswith("  mode "):
            heading = line.strip(" :")
        elif not line.startswith(" "):
            groups.setdefault(heading, []).append(line.partition(" ")[0])
    assert groups["every mode"] == ["method.mode"]
    assert "method.rank" in groups["mode lora, qlora"]
    assert groups["mode qlora"] == ["method.double_quantization"]
    for mode in ("prefix-tuning", "prompt-tuning"):
        assert "method.virtual_tokens" in groups[f"mode {mode}"]


def test_one_key_may_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert text_of(capsys, "method.rank")[0] == "method.rank = 16"
    assert len(text_of(capsys, "method.rank")) == 2


def test_without_a_section_every_key_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    keys = [line.split(" ")[0] for line in text_of(capsys) if not line.startswith(" ")]
    assert {key.partition(".")[0] for key in keys} == set(Recipe.model_fields)
    assert {"data.prompt", "training.seed", "eval.format.pattern", "eval.format.keys"} <= set(keys)


@pytest.mark.parametrize(
    "command", [["schema", "method"], ["schema", "method", "--text", "--json"]]
)
def test_a_section_of_the_json_schema_is_refused(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run(command) == 2
    assert capsys.readouterr().err == "SECTION needs --text; the JSON Schema has no parts\n"


def test_an_unknown_section_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "--text", "metod"]) == 2
    assert capsys.readouterr() == ("", "no section metod; did you mean method?\n")
