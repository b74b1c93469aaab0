"""Types for the sections of a recipe: numbers with limits, and paths.

A path is written relative to the recipe's folder, and absolute in a loaded recipe. Fields with a
path are marked with a `PathKind`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_boolean(value: object) -> object:
    """Refuse YAML's `true`, which pydantic would read as 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {str(value).lower()}")
    return value


# Limit of NumPy's seeds and of Arrow's row lengths.
LARGEST = 2**31 - 1

# Limits come before the validator: after it, pydantic leaves them out of the JSON Schema.
NO_BOOLEAN = BeforeValidator(_no_boolean)
PositiveCount = Annotated[int, Field(ge=1, le=LARGEST), NO_BOOLEAN]
CountFromZero = Annotated[int, Field(ge=0, le=LARGEST), NO_BOOLEAN]
Positive = Annotated[float, Field(gt=0), NO_BOOLEAN]
NotNegative = Annotated[float, Field(ge=0), NO_BOOLEAN]
Share = Annotated[float, Field(ge=0, lt=1), NO_BOOLEAN]
Rate = Annotated[float, Field(gt=0, lt=1), NO_BOOLEAN]


def require_regex(pattern: str, before: str = "") -> None:
    """Raise ValueError, its message prefixed by `before`, if Python rejects the expression."""
    try:
        re.compile(pattern)
    # RecursionError: deeply nested parentheses; OverflowError: numbers of repeats.
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{before}not a regular expression: {error}") from error


class Section(BaseModel):
    """A section of the recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


DATA_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".json")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class PathKind:
    """Marks a field as a path, and defines what else its text may be."""

    kind: Literal["file", "model", "data", "template", "folder"]
    """`model` and `data` may be hub ids, `template` a name or the Jinja text itself."""
    words: tuple[str, ...] = ()
    """Values with a meaning of their own, not paths."""
    code: str | None = None
    """Code of the error if the file is missing."""


@dataclass(frozen=True)
class NamedPath:
    """A path of a recipe."""

    key: str
    """Such as `data.train`."""
    value: str
    kind: PathKind


def paths_of(section: Section, prefix: str = "") -> Iterator[NamedPath]:
    """Every value of a section and its subsections that may be a path."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from paths_of(value, f"{prefix}{name}.")
        kind = next((mark for mark in field.metadata if isinstance(mark, PathKind)), None)
        if kind is not None and isinstance(value, str) and value and value not in kind.words:
            yield NamedPath(f"{prefix}{name}", value, kind)


def named_files(section: Section) -> list[Path]:
    """The files of a section, from the fields that take files only."""
    return [Path(named.value) for named in paths_of(section) if named.kind.kind == "file"]


def without_folders(section: SectionT) -> SectionT:
    """The section with files by name only, for fingerprints that cover their contents."""

    def name(named: NamedPath) -> str:
        return Path(named.value).name if named.kind.kind == "file" else named.value

    return with_paths(section, name)


def with_paths(section: SectionT, change: Callable[[NamedPath], str], prefix: str = "") -> SectionT:
    """The same section, with `change` applied to every path in it."""
    updates: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            changed: object = with_paths(value, change, f"{prefix}{name}.")
            if changed != value:
                updates[name] = changed
    own = (named for named in paths_of(section, prefix) if "." not in named.key[len(prefix) :])
    for named in own:
        if (path := change(named)) != named.value:
            updates[named.key[len(prefix) :]] = path
    return section.model_copy(update=updates) if updates else section


def absolute(named: NamedPath, base: Path) -> str:
    """The path as absolute and normalised, `~` expanded; a hub id or a template stays as it is."""
    value = named.value
    local = _normalised(os.path.join(base, os.path.expanduser(value)))
    # `owner/name` is a path where there is a folder of the owner's name.
    below = "/" in value and os.path.isdir(base / value.partition("/")[0])
    match named.kind.kind:
        case "model":
            is_path = os.path.exists(local) or looks_like_path(value) or below
        case "data":
            is_path = os.path.exists(local) or not looks_like_dataset_id(value) or below
        case "template":
            is_path = not is_jinja(value) and (value.endswith(".jinja") or os.path.isfile(local))
        case _:
            is_path = True
    return local if is_path else value


def _normalised(path: str) -> str:
    """Without `.` and `..`; resolved by the system if a `..` follows a symbolic link."""
    plain, real = os.path.normpath(path), os.path.realpath(path)
    return plain if os.path.realpath(plain) == real else real


def looks_like_path(model_id: str) -> bool:
    """Whether a model's id can only be a path: hub ids have at most one slash."""
    starts_as_path = model_id.startswith((".", "/", "~"))
    return (
        starts_as_path or model_id.count("/") > 1 or "\\" in model_id or model_id.endswith(".json")
    )


def looks_like_dataset_id(source: str) -> bool:
    """Whether a source of rows may be on the hub: `owner/name` without a file's suffix."""
    return HUB_ID.fullmatch(source) is not None and data_suffix(source) is None


def data_suffix(name: str) -> str | None:
    """`.jsonl` for `a/b.JSONL.gz`; None for an unsupported kind."""
    plain = name.lower().removesuffix(".gz")
    suffix = PurePosixPath(plain).suffix
    # Parquet has compression of its own, and needs random access, which gzip does not offer.
    packed_parquet = suffix == ".parquet" and name.lower() != plain
    return suffix if suffix in DATA_SUFFIXES and not packed_parquet else None


def is_jinja(template: str) -> bool:
    """Whether data.template is the text of a template."""
    return "{{" in template or "{%" in template
