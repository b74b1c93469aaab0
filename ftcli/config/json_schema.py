"""`ftcli schema`: the recipe's keys, for editors and for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ftcli.config.recipe import Recipe
from ftcli.config.wording import section_classes
from ftcli.errors import UsageError, did_you_mean

# Discriminators: keys that choose the class of their section.
TAGS = ("mode", "type")


def json_schema() -> str:
    """JSON Schema (draft 2020-12) of a recipe."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, ensure_ascii=False)


def key_lines(section: str | None) -> list[str]:
    """`method.rank = 16` and its description, for every key or the keys of one section."""
    lines = [line for key, line in _keys(Recipe, "") if section is None or _below(key, section)]
    if not lines:
        known = list(Recipe.model_fields)
        raise UsageError("section", f"no section {section}{did_you_mean(section or '', known)}")
    return lines


def _below(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        sections = section_classes(field.annotation)
        if name in TAGS:
            continue
        if not sections:
            yield key, f"{key}{_default(field)}\n    {_text(field)}"
        elif tag := next((tag for tag in TAGS if tag in sections[0].model_fields), None):
            yield from _keys_by_tag(sections, key, tag)
        else:
            yield from _keys(sections[0], f"{key}.")


def _keys_by_tag(sections: list[type[BaseModel]], key: str, tag: str) -> Iterator[tuple[str, str]]:
    """The tag, then groups of keys, each under the values of the tag that have them."""
    users: dict[tuple[str, str], list[str]] = {}
    for section in sections:
        for line in _keys(section, f"{key}."):
            users.setdefault(line, []).extend(get_args(section.model_fields[tag].annotation))
    values = [each for s in sections for each in get_args(s.model_fields[tag].annotation)]
    yield f"{key}.{tag}", f"{key}.{tag} (required)\n    One of {', '.join(values)}."
    for group, lines in groupby(users, key=lambda line: users[line]):
        if group != values:
            yield key, f"  {tag} {', '.join(group)}:"
        yield from lines


def _text(field: FieldInfo) -> str:
    """A field's docstring on one line."""
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return " (required)"
    return f" = {json.dumps(field.default, ensure_ascii=False, default=str)}"
