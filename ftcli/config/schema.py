"""`ftcli schema`: the recipe's keys, for editors and for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ftcli.config.recipe import Recipe
from ftcli.config.wording import section_classes
from ftcli.errors import UsageError, did_you_mean

# Discriminators: keys that choose the class of their section.
TAGS = (".mode", ".type")


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
    seen: set[str] = set()
    for name, field in model.model_fields.items():
        if f".{name}" in TAGS:
            continue
        key = f"{prefix}{name}"
        sections = section_classes(field.annotation)
        if not sections:
            yield key, f"{key}{_default(field)}\n    {_text(field)}"
            continue
        yield from _tags(sections, key)
        for inner in sections:
            for inner_key, line in _keys(inner, f"{key}."):
                if inner_key not in seen:
                    seen.add(inner_key)
                    yield inner_key, line


def _tags(sections: list[type[BaseModel]], key: str) -> Iterator[tuple[str, str]]:
    """The key that chooses the class of a section, with all its values."""
    for tag in TAGS:
        fields = [s.model_fields[tag[1:]] for s in sections if tag[1:] in s.model_fields]
        if fields:
            values = [value for field in fields for value in get_args(field.annotation)]
            yield f"{key}{tag}", f"{key}{tag} (required)\n    One of {', '.join(values)}."


def _text(field: FieldInfo) -> str:
    """A field's docstring on one line."""
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return " (required)"
    return f" = {json.dumps(field.default, ensure_ascii=False, default=str)}"
