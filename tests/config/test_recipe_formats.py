"""`eval.format` of a recipe: valid values, and errors for others."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import sqlglot

from ftcli.config.answer_format import Dialect
from ftcli.config.loader import dump_recipe, load_recipe
from ftcli.config.recipe import JsonFormat, RegexFormat, SqlFormat, TextFormat
from ftcli.errors import RecipeError

HEAD = """\
name: shop
model: {id: smollm2-135m}
method: {mode: lora}
data: {train: shop.jsonl}
eval:
  format:
"""


def written(tmp_path: Path, form: str) -> Path:
    path = tmp_path / "shop.yaml"
    path.write_text(HEAD + "".join(f"    {line}\n" for line in form.splitlines()), "utf-8")
    return path


def form_of(tmp_path: Path, form: str) -> object:
    return load_recipe(written(tmp_path, form)).recipe.eval.format


def test_each_type_has_its_keys(tmp_path: Path) -> None:
    assert form_of(tmp_path, "type: json\nkeys: [a, b]") == JsonFormat(type="json", keys=["a", "b"])
    assert form_of(tmp_path, "type: regex\npattern: a+") == RegexFormat(type="regex", pattern="a+")
    text = form_of(tmp_path, "type: text\nsections: ['# ', 'Specs:']\nwords: {max: 80}")
    assert isinstance(text, TextFormat)
    assert text.words is not None and (text.words.min, text.words.max) == (None, 80)
    sql = form_of(tmp_path, "type: sql\ntable: prompt")
    assert sql == SqlFormat(type="sql", dialect="sqlite", table="prompt")


def test_lengths_go_with_every_type(tmp_path: Path) -> None:
    for form in ("type: json", "type: regex\npattern: a", "type: sql", "type: text"):
        found = form_of(tmp_path, f"{form}\ncharacters: {{min: 1, max: 9}}\nsections: [a]")
        assert isinstance(found, JsonFormat | RegexFormat | SqlFormat | TextFormat)
        assert found.characters is not None and found.characters.max == 9


@pytest.mark.parametrize(
    ("form", "line", "message"),
    [
        ("type: xml", 7, "eval.format.type: unknown value xml"),
        ("type: json\npattern: a", 8, "eval.format.pattern: not a key of type json, but"),
        ("type: json\nkeys: [a, a]", 8, "eval.format: keys has a twice"),
        ("type: json\nschema: 5", 8, "eval.format.schema: expected a text (put it in quotes) or"),
        (
            "type: json\nkeys: [a]\nschema: {}",
            8,
            "eval.format: keys and schema both describe the answer; give one of them",
        ),
        (
            "type: json\nschema:\n  properties:\n    price:\n      type: strnig",
            11,
            "eval.format.schema.properties.price.type: unknown type strnig; did you mean "
            "string? (there is string, number, integer, boolean, array, object, null)",
        ),
        (
            "type: json\nschema:\n  properties:\n    price:\n      type: null",
            11,
            "eval.format.schema.properties.price.type: None is not valid under any of the given "
            'schemas; in YAML the type is "null", in quotes',
        ),
        (
            "type: json\nschema:\n  properties:\n    code:\n      pattern: '('",
            11,
            "eval.format.schema.properties.code.pattern: '(' is not a 'regex'",
        ),
        (
            "type: json\nschema:\n  propertis: {}",
            9,
            "eval.format.schema: propertis is not a keyword of JSON Schema; did you mean "
            "properties?",
        ),
        (
            "type: json\nschema:\n  $schema: draft-7",
            9,
            "eval.format.schema.$schema: unknown draft: draft-7; leave it out for draft 2020-12",
        ),
        (
            "type: json\nschema:\n  $ref: 'https://example.com/a.json'",
            8,
            "eval.format.schema: $ref https://example.com/a.json leads nowhere in this schema, and "
            "nothing is fetched; put its target under $defs",
        ),
        (
            "type: json\nschema:\n  properties: {a: {$ref: '#/$defs/b'}}\n  $defs: {c: {}}",
            8,
            "eval.format.schema: $ref #/$defs/b leads nowhere in this schema",
        ),
        (
            "type: json\nschema:\n  $ref: '#'",
            8,
            "eval.format.schema: a $ref leads back to itself without end",
        ),
        (
            "type: json\nschema:\n  enum: [2025-01-01]",
            9,
            "eval.format.schema.enum.0: expected a value that JSON has (put dates in quotes), "
            "found 2025-01-01",
        ),
        ("type: text", 7, "eval.format: type text alone requires nothing; give sections, words or"),
        ("type: text\nwords: {}", 8, "eval.format.words: gives neither min nor max"),
        ("type: text\nwords: {mx: 3}", 8, "eval.format.words.mx: unknown key; did you mean max?"),
        ("type: text\nwords: 80", 8, "eval.format.words: expected a section of keys and values"),
        ("type: text\nwords: {max: 0}", 8, "eval.format.words.max: must be at least 1, found 0"),
        (
            "type: text\ncharacters: {min: 5, max: 2}",
            8,
            "eval.format.characters: min 5 is above max 2",
        ),
        ("type: text\nsections: ['']", 8, "eval.format.sections: a section is one line that is"),
        ('type: text\nsections: ["a\\nb"]', 8, "eval.format.sections: a section is one line that"),
        (
            "type: sql\ndialect: postgresql",
            8,
            "eval.format.dialect: expected athena",
        ),
        (
            "type: sql\ndialect: mysql\ntable: rows.csv",
            8,
            "eval.format: table runs the queries in SQLite, and dialect is mysql; leave one of "
            "them out",
        ),
        (
            "type: sql\ntable_name: shop",
            8,
            "eval.format: table_name is for the rows of a file, and table is not a file",
        ),
    ],
)
def test_what_cannot_be_asked_is_named_at_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, line: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", None)
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, form))
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"shop.yaml:{line}: {message}")


def test_a_schema_of_an_older_draft_is_taken(tmp_path: Path) -> None:
    form = """\
type: json
schema:
  $schema: http://json-schema.org/draft-07/schema#
  x-owner: shop team
  properties: {a: {$ref: '#/definitions/word'}}
  definitions: {word: {type: string}}"""
    assert isinstance(form_of(tmp_path, form), JsonFormat)


def test_files_are_found_from_the_run_folder_too(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}", "utf-8")
    (tmp_path / "rows.csv").write_text("a\n1\n", "utf-8")
    loaded = load_recipe(written(tmp_path, "type: json\nschema: record.json"))
    form = loaded.recipe.eval.format
    assert isinstance(form, JsonFormat) and form.schema == str(tmp_path / "record.json")
    loaded = load_recipe(written(tmp_path, "type: sql\ntable: rows.csv"))
    form = loaded.recipe.eval.format
    assert isinstance(form, SqlFormat) and form.table == str(tmp_path / "rows.csv")
    (tmp_path / "prompt").mkdir()
    form = load_recipe(written(tmp_path, "type: sql\ntable: prompt")).recipe.eval.format
    assert isinstance(form, SqlFormat) and form.table == "prompt"


@pytest.mark.parametrize(
    "form",
    [
        "type: json\nschema: {type: object, required: [a]}\nwords: {max: 9}",
        "type: sql\ntable: prompt",
        "type: text\nsections: ['# a', 'b:']",
    ],
)
def test_a_recipe_with_a_form_survives_yaml_and_json(tmp_path: Path, form: str) -> None:
    recipe = load_recipe(written(tmp_path, form)).recipe
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe), "utf-8")
    assert load_recipe(again).recipe == recipe
    assert type(recipe).model_validate(json.loads(recipe.model_dump_json())) == recipe


def test_every_dialect_is_known_to_the_parser() -> None:
    for name in Dialect.__args__:  # type: ignore[attr-defined]
        assert sqlglot.Dialect.get_or_raise(name) is not None
