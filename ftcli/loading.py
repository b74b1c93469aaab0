"""YAML and `--set` → Recipe, with every fault at its line.

YAML is composed into nodes first, because only nodes know their line; values are then built by
YAML's safe rules, so that no tag can run code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from yaml.events import CollectionEndEvent, CollectionStartEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ftcli.console import shown_path
from ftcli.errors import FtcliError, Problem, RecipeError, UsageError, did_you_mean
from ftcli.recipe import Recipe

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Path_ = tuple[str, ...]

# YAML 1.1 reads 010 as 8 and 1:30 as 90, YAML 1.2 reads 10 and a text: nobody means all of them.
OCTAL = re.compile(r"^[-+]?0[0-9_]+$")
NUMBER_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float")}
TAGS = NUMBER_TAGS | {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "null", "bool", "timestamp")
}
# A recipe is 4 levels deep and has about 60 keys; anchors can make far more of a few lines.
DEEPEST = 8
MOST_VALUES = 10_000


# Code of an error that is found later → the key to look at.
KEY_AT_FAULT = {
    "hub_not_found": "model.id",
    "hub_gated": "model.id",
    "hub_unreachable": "model.id",
    "model": "model.id",
    "model_missing": "model.id",
    "model_unknown": "model.id",
    "model_type_unknown": "model.id",
    "tokenizer": "model.id",
    "template_missing": "data.template",
    "target_modules": "method.target_modules",
    "method_refused": "method.mode",
    "precision": "training.precision",
    "optimizer": "training.optimizer",
    "attention": "model.attention",
    "truncation": "data.max_length",
}


@dataclass(frozen=True)
class Loaded:
    """A recipe and the file it came from; its relative paths start at `base`."""

    recipe: Recipe
    path: Path
    base: Path
    overrides: tuple[str, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each key that the file holds, as `model.id`."""

    def place(self, key: str) -> tuple[str, int | None]:
        """The `--set` that wrote the key, or its line, or that of the section it would stand in."""
        for override in reversed(self.overrides):
            written = override.partition("=")[0].strip()
            if key == written or key.startswith(f"{written}."):
                return f"--set {override}", None
        section = key.partition(".")[0]
        return self.shown_path(), self.lines.get(key, self.lines.get(section))

    @contextmanager
    def blame(self) -> Iterator[None]:
        """Give an error that a key of the recipe has caused the place of that key."""
        try:
            yield
        except FtcliError as error:
            key = KEY_AT_FAULT.get(error.code)
            if key is not None and error.file is None:
                error.file, error.line = self.place(key)
                error.message = f"{key}: {error.message.removeprefix(f'{key}: ')}"
            raise

    @property
    def output(self) -> Path:
        """Folder of the run."""
        path = self.base / (self.recipe.output or f"runs/{self.recipe.name}")
        # `recipes/../runs/x` is read by people as `runs/x`.
        return Path(os.path.normpath(path))

    def shown_path(self) -> str:
        """The recipe's path as the user would type it."""
        return shown_path(self.path)


@dataclass
class _Found:
    """What a walk over the nodes collects: a line for every key, and faults of YAML itself."""

    file: str
    """The recipe, or the `--set` whose value is walked over."""
    in_flag: bool = False
    lines: dict[Path_, int] = field(default_factory=dict)
    overridden: dict[Path_, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    values: int = 0

    def problem(self, path: Path_, message: str) -> Problem:
        """At the key that the message names, or `path`, or the flag or section that made it."""
        words = set(re.findall(r"\w+", message))
        written = [*self.overridden, *self.lines]
        named = [key for key in written if key[:-1] == path and key[-1] in words]
        below = [key for key in self.overridden if path and key[: len(path)] == path]
        above = [path[:length] for length in range(len(path) - 1, 0, -1)]
        for key in (*named, path, *below, *above):
            if key in self.overridden:
                return Problem(self.overridden[key], None, ".".join(path), message)
            if key in self.lines:
                return Problem(self.file, self.lines[key], ".".join(path), message)
        return Problem(self.file, None, ".".join(path), message)

    def fault(self, node: Node, path: Path_, message: str) -> None:
        line = None if self.in_flag else node.start_mark.line + 1
        self.problems.append(Problem(self.file, line, ".".join(path), message))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override and judge a recipe; raises RecipeError with all its faults.

    A missing file raises UsageError with exit code 1: the disk had to be looked at.
    """
    found = _Found(shown_path(path))
    values = _compose(_read(path), found)
    for override in overrides:
        _override(values, override, found)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        named = {problem.key for problem in found.problems}
        found.problems += [p for p in _problems(error, values, found) if p.key not in named]
        raise RecipeError(_in_order(found.problems)) from error
    if found.problems:
        raise RecipeError(_in_order(found.problems))
    lines = {".".join(key): line for key, line in found.lines.items()}
    return Loaded(recipe, path, path.absolute().parent, tuple(overrides), lines)


def resolved(loaded: Loaded) -> Recipe:
    """The same recipe with paths that hold wherever it is put: for the run folder."""

    def fixed(path: str) -> str:
        local = loaded.base / path
        return str(local) if local.exists() else path

    recipe = loaded.recipe
    held_out = {
        key: fixed(value)
        for key, value in (("validation", recipe.data.validation), ("test", recipe.data.test))
        if isinstance(value, str)
    }
    if recipe.data.template is not None:
        held_out["template"] = fixed(recipe.data.template)
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"id": fixed(recipe.model.id)}),
            "data": recipe.data.model_copy(update={"train": fixed(recipe.data.train), **held_out}),
            "output": str(loaded.output),
        }
    )


def differences(old: Recipe, new: Recipe, ignored: Set[str]) -> list[str]:
    """`training.epochs: 3 → 5`, for every key that differs and is not ignored."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    return [
        f"{key}: {_as_yaml(before.get(key))} → {_as_yaml(after.get(key))}"
        for key in keys
        if not any(key == name or key.startswith(f"{name}.") for name in ignored)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


class _Dumper(yaml.SafeDumper):
    """PyYAML writes these signs as they are and reads them as line ends."""

    line_ends = re.compile("[\x85\u2028\u2029]")

    def text(self, value: str) -> ScalarNode:
        style = '"' if self.line_ends.search(value) else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _Dumper.text)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, every default written out, as YAML that `load_recipe` reads back."""
    values = recipe.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise _missing(path)
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from error


def _missing(path: Path) -> UsageError:
    what = "is a folder, not a recipe" if path.is_dir() else "no such recipe"
    near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return _unreadable(path, f"{what}{did_you_mean(path.name, near)}")


def _unreadable(path: Path, message: str) -> UsageError:
    error = UsageError("recipe_missing", message, file=shown_path(path))
    error.exit_code = 1
    return error


def _compose(content: bytes, found: _Found) -> dict[str, Any]:
    line: int | None = 1
    text = ""
    try:
        text = content.decode("utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(root, MappingNode):
            return _root(root, found)
        what = "is empty" if root is None else "is not a mapping of keys to values"
        message = f"the recipe {what}; see `ftcli schema`"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 text (byte 0x{content[error.start]:02x}); save it as UTF-8"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not YAML: character #x{error.character:04x} is not allowed"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        message = f"not YAML: {error.problem or error.context}"
    except RecursionError:
        line, message = _deep_line(text), "nested too deeply"
    raise RecipeError((Problem(found.file, line, "", message),))


def _root(root: MappingNode, found: _Found) -> dict[str, Any]:
    values = _value(root, (), found)
    if values is None:
        raise RecipeError(tuple(found.problems))
    return cast(dict[str, Any], values)


def _deep_line(text: str) -> int | None:
    """The line where the nesting goes past what a recipe has."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST and event.start_mark is not None:
            return event.start_mark.line + 1
    return None


def _value(node: Node, path: Path_, found: _Found) -> object:
    found.values += 1
    if len(path) > DEEPEST or found.values > MOST_VALUES:
        limits = f"{DEEPEST} levels and {MOST_VALUES} values"
        found.fault(node, path, f"nested too deeply or repeated too often; the limit is {limits}")
        raise RecipeError(_in_order(found.problems))
    if node.tag not in TAGS:
        found.fault(node, path, f"tag {node.tag} is not allowed")
        return None
    match node:
        case MappingNode():
            return _mapping(node, path, found)
        case SequenceNode():
            return [_value(item, (*path, str(i)), found) for i, item in enumerate(node.value)]
        case ScalarNode():
            return _scalar(node, path, found)
        case _:
            raise AssertionError(f"unknown YAML node {node!r}")


def _mapping(node: MappingNode, path: Path_, found: _Found) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            found.fault(key_node, path, "a key must be a plain word")
            continue
        key = key_node.value
        if key_node.tag == "tag:yaml.org,2002:merge":
            found.fault(key_node, (*path, key), "merging is not supported; write the keys out")
            continue
        if key in values:
            first = found.lines[(*path, key)]
            found.fault(key_node, (*path, key), f"written twice; first on line {first}")
            continue
        found.lines[(*path, key)] = key_node.start_mark.line + 1
        values[key] = _value(value_node, (*path, key), found)
    return values


def _scalar(node: ScalarNode, path: Path_, found: _Found) -> object:
    if node.style is None and node.tag in NUMBER_TAGS:
        if OCTAL.match(node.value):
            found.fault(
                node,
                path,
                f"{node.value} may mean octal or decimal; write it without the leading 0, or in "
                "quotes if it is a text",
            )
            return None
        if ":" in node.value:
            found.fault(node, path, f"{node.value} may mean base 60; put it in quotes")
            return None
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError):
        # PyYAML fails in each of these ways where a value is not of the kind its tag says.
        kind = node.tag.rpartition(":")[2]
        found.fault(node, path, f"cannot be read as {kind}: {node.value[:60]}")
        return None


def _override(values: dict[str, Any], override: str, found: _Found) -> None:
    key, sign, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not sign or not all(path):
        raise UsageError("flag", f"--set {override}: expected section.key=value")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError("flag", f"--set {override}: the value is not YAML") from error
    inside = _Found(f"--set {override}", in_flag=True)
    value = _value(node, path, inside) if node is not None else None
    found.problems += inside.problems
    found.overridden[path] = inside.file
    found.lines = {k: line for k, line in found.lines.items() if k[: len(path)] != path}
    section = values
    for part in path[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise UsageError("flag", f"--set {override}: {part} is not a section")
    section[path[-1]] = value


def _in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.line or 0, p.key)))


def _problems(error: ValidationError, values: dict[str, Any], found: _Found) -> Iterator[Problem]:
    at: dict[Path_, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        at.setdefault(_user_path(detail, values), []).append(detail)
    for path, details in at.items():
        if not any(other[: len(path)] == path and other != path for other in at):
            yield found.problem(path, _message(details, path, values))


def _user_path(detail: ErrorDetails, values: object) -> Path_:
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
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
}
LIMITS = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge")}
LIMITS |= {"less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}


def _message(details: list[ErrorDetails], path: Path_, values: dict[str, Any]) -> str:
    """One sentence for all that pydantic says of one key."""
    first = details[0]
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key{did_you_mean(path[-1], _known_keys(path[:-1], values))}"
        case "missing" | "union_tag_not_found":
            return "is missing"
        case "union_tag_invalid":
            tag = first["input"][path[-1]]
            names = [name.strip(" '") for name in str(first["ctx"]["expected_tags"]).split(",")]
            hint = did_you_mean(tag, names) if isinstance(tag, str) else ""
            return f"no such choice: {_as_yaml(tag)}{hint} (there is {', '.join(names)})"
    special = [d for d in details if d["type"] in ("value_error", *LIMITS)]
    if special:
        return _judged(special[0])
    wanted = dict.fromkeys(_expected(detail) for detail in details)
    value = first["input"]
    hint = did_you_mean(value, _choices(details)) if isinstance(value, str) else ""
    return f"expected {' or '.join(wanted)}, found {_as_yaml(value)}{hint}"


def _judged(detail: ErrorDetails) -> str:
    if detail["type"] in LIMITS:
        word, key = LIMITS[detail["type"]]
        return f"must be {word} {detail['ctx'][key]:g}, found {_as_yaml(detail['input'])}"
    return detail["msg"].removeprefix("Value error, ")


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"]).replace("'", "")
    fallback = detail["msg"].removeprefix("Input should be ").removeprefix("String should ")
    return EXPECTED.get(detail["type"], fallback)


def _choices(details: list[ErrorDetails]) -> list[str]:
    texts = [str(d["ctx"]["expected"]) for d in details if d["type"] == "literal_error"]
    return [word for text in texts for word in re.findall(r"'([^']+)'", text)]


def _as_yaml(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True)
    return " ".join(text.removesuffix("\n").removesuffix("\n...").split())[:60]


def _known_keys(path: Path_, values: Mapping[str, Any]) -> list[str]:
    """Keys of the section at `path`; where its class depends on a mode, of the class chosen."""
    section: type[BaseModel] = Recipe
    here: Any = values
    for part in path:
        here = here.get(part, {}) if isinstance(here, dict) else {}
        classes = _section_classes(section.model_fields[part].annotation)
        section = next((c for c in classes if _takes(c, here)), classes[0])
    return list(section.model_fields)


def _section_classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [c for argument in get_args(annotation) for c in _section_classes(argument)]


def _takes(section: type[BaseModel], values: object) -> bool:
    if not isinstance(values, dict):
        return False
    tags = {"mode", "type"} & set(section.model_fields)
    return all(values.get(t) in get_args(section.model_fields[t].annotation) for t in tags)
