"""What pydantic finds wrong with a recipe, in one sentence a key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ftcli.config.nodes import MOST_PROBLEMS, Found, KeyPath
from ftcli.config.other_tools import section_classes, suggestion
from ftcli.config.recipe import Recipe
from ftcli.errors import Problem, did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def problems_of(error: ValidationError, values: dict[str, Any], found: Found) -> Iterator[Problem]:
    """One problem for each key at fault, at its line."""
    at: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if len(at) <= 2 * MOST_PROBLEMS:  # each is held against all others
            at.setdefault(_user_path(detail, values), []).append(detail)
    for path, details in at.items():
        if not any(other[: len(path)] == path and other != path for other in at):
            message, place = _message(details, path, values, found), path
            if _is_item(path, values):
                message, place = f"item {int(path[-1]) + 1}: {message}", path[:-1]
            yield found.problem(place, message)


def _is_item(path: KeyPath, values: object) -> bool:
    """Whether the path ends at an item of a key's list; schemas have places of their own."""
    if path[:3] == ("eval", "format", "schema"):
        return False
    here: Any = values
    for part in path[:-1]:
        here = here[int(part)] if isinstance(here, list) else here.get(part)
        if not isinstance(here, dict | list):
            return False
    return isinstance(here, list) and path[-1].isdecimal()


def _user_path(detail: ErrorDetails, values: object) -> KeyPath:
    """pydantic's location without the names of union members: only what the user wrote."""
    path: list[str] = []
    here: Any = values
    for part in detail["loc"]:
        inside_mapping = isinstance(here, dict) and part in here
        if inside_mapping or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            path.append(str(part))
        elif detail["type"] == "missing" and part == detail["loc"][-1]:
            path.append(str(part))
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    if detail["type"] == "value_at":  # a fault that a validator has found further in
        path += detail["ctx"]["at"]
    return tuple(path)


# pydantic's error types in our words (docs.pydantic.dev, "Validation Errors").
EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text (put it in quotes)",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a name that can be a folder's: no / or \\, not only dots",
    "list_type": "a list",
    "too_short": "a list that is not empty",
    "dict_type": "keys and values",
    "invalid-json-value": "a value that JSON has (put dates in quotes)",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
}
PACKING = (
    "packing is training.packing here, which is on where it can be: no token sees another row, and "
    "the rows of a step stay the same; leave the key out"
)
TRUST = (
    "no code of a model is ever run, neither by a key nor by a flag: transformers itself has every "
    "architecture that ftcli trains; leave the key out"
)
# Keys that other trainers have → why there is none here.
NOT_OFFERED = dict.fromkeys(("packing", "packing_strategy", "sample_packing"), PACKING)
NOT_OFFERED |= {"trust_remote_code": TRUST}
LIMITS = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge")}
LIMITS |= {"less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}


def _message(
    details: list[ErrorDetails], path: KeyPath, values: dict[str, Any], found: Found
) -> str:
    """One sentence for all that pydantic says of one key."""
    first = details[0]
    match first["type"]:
        case "extra_forbidden":
            if other := _key_of_another_choice(path, values, found):
                return other
            hint = suggestion(path[-1], _section(path[:-1], values)[0])
            return NOT_OFFERED.get(path[-1], f"unknown key{hint}")
        case "missing" | "union_tag_not_found":
            return "is missing"
        case "union_tag_invalid":
            tag = first["input"][path[-1]]
            names = [name.strip(" '") for name in str(first["ctx"]["expected_tags"]).split(",")]
            hint = did_you_mean(tag, names) if isinstance(tag, str) else ""
            return f"no such choice: {as_yaml(tag)}{hint} (there is {', '.join(names)})"
    special = [d for d in details if d["type"] in ("value_error", "value_at", *LIMITS)]
    if special:
        return _judged(special[0])
    wanted = dict.fromkeys(_expected(detail) for detail in details)
    value = first["input"]
    hint = did_you_mean(value, _choices(details)) if isinstance(value, str) else ""
    if (
        not hint
        and isinstance(value, str)
        and any(detail["type"] == "list_type" for detail in details)
    ):
        hint = _as_list(value, path)
    return f"expected {' or '.join(wanted)}, found {as_yaml(value)}{hint}"


def _as_list(value: str, path: KeyPath) -> str:
    """How one writes a list, and of what, where only some words may stand in it."""
    names = _names(_annotation(path))
    if not names or value in names:
        return f"; write it in brackets: [{as_yaml(value)}]"
    near = did_you_mean(value, names)
    return f"{near} (a list is written in brackets: [{', '.join(names)}])"


def _names(annotation: Any) -> list[str]:
    """The words of all `Literal`s in a type."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for argument in get_args(annotation) for word in _names(argument)]


def _annotation(path: KeyPath) -> Any:
    """Type of a key whose sections are of one class each; none elsewhere."""
    section: type[BaseModel] = Recipe
    for part in path[:-1]:
        field = section.model_fields.get(part)
        classes = section_classes(field.annotation) if field is not None else []
        if len(classes) != 1:
            return None
        section = classes[0]
    field = section.model_fields.get(path[-1])
    return None if field is None else field.annotation


def _judged(detail: ErrorDetails) -> str:
    if detail["type"] in LIMITS:
        word, key = LIMITS[detail["type"]]
        limit = detail["ctx"][key]
        written = f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
        return f"must be {word} {written}, found {as_yaml(detail['input'])}"
    return detail["msg"].removeprefix("Value error, ")


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"]).replace("'", "")
    fallback = detail["msg"].removeprefix("Input should be ").removeprefix("String should ")
    return EXPECTED.get(detail["type"], fallback)


def _choices(details: list[ErrorDetails]) -> list[str]:
    texts = [str(d["ctx"]["expected"]) for d in details if d["type"] == "literal_error"]
    return [word for text in texts for word in re.findall(r"'([^']+)'", text)]


def _key_of_another_choice(path: KeyPath, values: Mapping[str, Any], found: Found) -> str | None:
    """What a key is doing here that another mode, or another type, of the section has."""
    section, others = _section(path[:-1], values)
    for tag in _tags(section):
        chosen = get_args(section.model_fields[tag].annotation)
        owners = [
            word
            for other in others
            if path[-1] in other.model_fields
            for word in get_args(other.model_fields[tag].annotation)
        ]
        if owners:
            flag = found.flag_of((*path[:-1], tag))
            whole = f"--set '{'.'.join(path[:-1])}={{{tag}: {chosen[0]}}}'"
            advice = f"; {whole} replaces the whole section" if flag is not None else ""
            return f"not a key of {tag} {chosen[0]}, but of {', '.join(owners)}{advice}"
    return None


def _section(
    path: KeyPath, values: Mapping[str, Any]
) -> tuple[type[BaseModel], list[type[BaseModel]]]:
    """Class of the section at `path`, by its mode or type, and the classes it could have been."""
    section: type[BaseModel] = Recipe
    others: list[type[BaseModel]] = []
    here: Any = values
    for part in path:
        here = here.get(part, {}) if isinstance(here, dict) else {}
        classes = section_classes(section.model_fields[part].annotation)
        section = next((c for c in classes if _takes(c, here)), classes[0])
        others = [c for c in classes if c is not section]
    return section, others


def _takes(section: type[BaseModel], values: object) -> bool:
    if not isinstance(values, dict):
        return False
    return all(
        values.get(tag) in get_args(section.model_fields[tag].annotation) for tag in _tags(section)
    )


def _tags(section: type[BaseModel]) -> set[str]:
    """The key that chooses among the classes of a section."""
    return {"mode", "type"} & set(section.model_fields)


def as_yaml(value: object) -> str:
    """A value as one would write it in a recipe, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True)
    return " ".join(text.removesuffix("\n").removesuffix("\n...").split())[:60]
