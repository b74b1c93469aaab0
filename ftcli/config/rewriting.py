"""Change keys of a recipe: in its values, and in the text that the user wrote.

ruamel.yaml is imported inside functions: only `estimate-vram --write` needs it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from difflib import SequenceMatcher
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ftcli.config.loader import RecipeFile, flat, with_absolute_paths
from ftcli.config.nodes import ParseState, compose
from ftcli.config.recipe import METHOD_CLASSES, Recipe
from ftcli.config.section import NamedPath, absolute, paths_of
from ftcli.errors import RecipeError, UsageError

Settings = Mapping[str, Any]
"""Key of the recipe, as `method.rank` → its value."""


def changed(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with these keys changed; raises UsageError if the result is not valid."""
    values = recipe.model_dump(exclude_unset=True)
    _set_keys(values, settings)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError("flag", str(first["msg"]).removeprefix("Value error, ")) from error


def overridden(loaded: RecipeFile) -> dict[str, Any]:
    """Keys or sections that `--set` has changed, with their values."""
    values = loaded.recipe.model_dump(exclude_unset=True)
    keys = [override.partition("=")[0].strip() for override in loaded.overrides]
    return {key: reduce(lambda value, part: value[part], key.split("."), values) for key in keys}


def relocated(text: str, settings: Settings, wanted: Recipe, new: Path) -> dict[str, Any]:
    """The settings, and the relative paths of the text that differ when it is in the folder `new`.

    `wanted` is the changed recipe as loaded; a path in `settings` becomes relative.
    """
    written = flat(compose(text.encode(), ParseState("")))
    paths: dict[str, str | None] = {}
    for named in paths_of(wanted):
        if not os.path.isabs(named.value):
            continue  # a hub id
        before = written.get(named.key)
        stays = isinstance(before, str) and _leads_to(before, named, new)
        given = any(f"{named.key}.".startswith(f"{key}.") for key in settings)
        if given or (before is not None and not stays):
            paths[named.key] = before if stays else _relative(named, new)
    return {**settings, **paths}


def _leads_to(path: str, named: NamedPath, folder: Path) -> bool:
    return absolute(replace(named, value=path), folder) == named.value


def _relative(named: NamedPath, new: Path) -> str:
    path = os.path.relpath(named.value, new)
    return path if _leads_to(path, named, new) else os.path.join(os.curdir, path)


def rewritten(text: str, settings: Settings, wanted: Recipe, new: Path) -> str:
    """The recipe's text with these keys changed and all other lines kept.

    Returned only if it reads back as the recipe `wanted` in the folder `new`.
    """
    unix = text.replace("\r\n", "\n")
    before = _dumped(unix, {})
    after = _dumped(unix, {key: _written(value) for key, value in settings.items()})
    # Changed lines have ruamel's indents, which may not fit a recipe with mixed indents.
    for candidate in (_patched(unix, before, after), after):
        if _reads_back(candidate, wanted, new):
            return candidate.replace("\n", "\r\n") if unix != text else candidate
    raise AssertionError(f"the changed recipe does not read back:\n{after}")


def _dumped(text: str, settings: Settings) -> str:
    from ruamel.yaml.util import load_yaml_guess_indent

    parser = _round_trip()
    _, indent, offset = load_yaml_guess_indent(text)
    # A sequence is in its key's column unless the user indents it.
    parser.indent(mapping=indent, sequence=indent if offset else 2, offset=offset or 0)
    values = parser.load(text)
    _set_keys(values, settings)
    out = io.StringIO()
    parser.dump(values, out)
    return out.getvalue()


def _patched(text: str, before: str, after: str) -> str:
    """The text with the lines replaced that differ between the two dumps."""
    lines, old, new = text.splitlines(True), before.splitlines(True), after.splitlines(True)
    if len(lines) != len(old):
        return after
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for kind, start, end, new_start, new_end in reversed(blocks):
        if kind == "equal":
            continue
        if kind == "insert":
            # ruamel adds a key after the blank lines and comments that follow its section.
            while start > 0 and old[start - 1].strip()[:1] in ("", "#"):
                start -= 1
            end = start
        changed_lines = new[new_start:new_end]
        lines[start:end] = [_as_siblings(line, lines, old, start) for line in changed_lines]
    return "".join(lines)


def _as_siblings(line: str, lines: list[str], old: list[str], start: int) -> str:
    """The line with the user's indent: ruamel gives all mappings the same one."""
    spaces = _indent(line)
    for place in range(min(start, len(old) - 1), -1, -1):
        if old[place].strip() and _indent(old[place]) == spaces:
            return " " * _indent(lines[place]) + line.lstrip(" ")
    return line


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _reads_back(text: str, wanted: Recipe, new: Path) -> bool:
    try:
        found = Recipe.model_validate(compose(text.encode(), ParseState("")))
    except (RecipeError, ValidationError):
        return False
    if found.output is None:
        wanted = wanted.model_copy(update={"output": None})
        return with_absolute_paths(found, new).model_copy(update={"output": None}) == wanted
    return with_absolute_paths(found, new) == wanted


def _round_trip() -> Any:
    """A parser that reads every plain value as text, so that 1e-4 or 0x10 stay as written."""
    from ruamel.yaml import YAML
    from ruamel.yaml.resolver import VersionedResolver

    class PlainTexts(VersionedResolver):
        @property
        def versioned_resolver(self) -> dict[str, Any]:
            return {}

    parser = YAML()
    parser.Resolver = PlainTexts
    parser.preserve_quotes = True
    parser.width = 2**20  # do not fold long lines
    return parser


def _set_keys(values: MutableMapping[str, Any], settings: Settings) -> None:
    for key, value in settings.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        _put(section, name, value)
    method = values["method"]
    known = METHOD_CLASSES[str(method["mode"])].model_fields
    for name in [name for name in method if name not in known]:
        del method[name]  # a key of the method before


def _put(section: MutableMapping[str, Any], name: str, value: Any) -> None:
    """Set a key; lists change in place, as ruamel keeps comments and layout in the list.

    Source: ruamel.yaml, comments.py (`CommentedBase.ca`).
    """
    old = section.get(name)
    comments = getattr(old, "ca", None)
    if not isinstance(old, list) or not isinstance(value, list) or comments is None:
        section[name] = value
        return
    after = comments.items.pop(len(old) - 1, None)
    del old[:]
    old.extend(value)
    if after is not None:
        comments.items[len(value) - 1] = after


def _written(value: object) -> object:
    """A value as the text of a plain scalar, in quotes if YAML would read something else."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            short = f"{value:g}"
            return short if float(short) == value else repr(value)
        case list() | tuple():
            items = CommentedSeq([_written(item) for item in value])
            items.fa.set_flow_style()
            return items
        case dict():
            return CommentedMap({key: _written(each) for key, each in value.items()})
        case None:
            return "null"
        case _:
            text = str(value)
            return text if _reads_as(text) == text else DoubleQuotedScalarString(text)


def _reads_as(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
