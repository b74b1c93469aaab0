"""YAML text → plain values, with the line of every key.

YAML is composed into nodes first, because only nodes have line numbers; values are then built by
YAML's safe rules, so that no tag can run code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ftcli.errors import Problem, RecipeError, UsageError

KeyPath = tuple[str, ...]

# YAML 1.1 reads 010 as 8 and 1:30 as 90, YAML 1.2 as 10 and a text: both are ambiguous.
OCTAL = re.compile(r"^[-+]?0[0-9_]+$")
NUMBER_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float")}
TAGS = NUMBER_TAGS | {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "null", "bool", "timestamp")
}
# A recipe is 4 levels deep and has about 60 keys; anchors can multiply a few lines.
DEEPEST = 8
MOST_VALUES = 10_000
# Limits before anchors are expanded: PyYAML recurses for each level.
DEEPEST_NODE = 100
MOST_NODES = 3 * MOST_VALUES
# Whole numbers of 8 bytes; Python cannot convert very long ones to text.
LARGEST_NUMBER = 2**63 - 1
# Characters of a flag or value in a message, and errors in a list.
MOST_SHOWN = 200
MOST_PROBLEMS = 50
# Characters that no file name, tokenizer or terminal accepts.
UNUSABLE = re.compile("[\x00\ud800-\udfff]")


class _TooMuchError(yaml.MarkedYAMLError):
    """The YAML exceeds the limits of a recipe."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, checked before the whole text is in memory."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > DEEPEST_NODE or self.nodes > MOST_NODES:
            place = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            what = "nested too deeply" if self.depth > DEEPEST_NODE else "too many values"
            raise _TooMuchError(problem=what, problem_mark=place)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass
class ParseState:
    """Collected from the YAML nodes: the line of every key, and errors of the YAML itself."""

    file: str
    """The recipe, or the `--set` whose value is read."""
    in_flag: bool = False
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    values: int = 0

    def flag_of(self, path: KeyPath) -> str | None:
        """The `--set` that wrote this key or one of its sections."""
        flags = (self.overridden.get(path[:length]) for length in range(len(path), 0, -1))
        return next((flag for flag in flags if flag is not None), None)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem at the key that the message names, or `path`, or the flag or section above."""
        words = set(re.findall(r"\w+", message))
        written = [*self.overridden, *self.lines]
        below = [key for key in self.overridden if path and key[: len(path)] == path]
        inner = [*below, *(key for key in written if key[:-1] == path)]
        named = [key for key in inner if key[-1] in words]
        above = [path[:length] for length in range(len(path) - 1, 0, -1)]
        for key in (*named, path, *below, *above):
            if key in self.overridden:
                return Problem(self.overridden[key], None, ".".join(path), message)
            if key in self.lines:
                return Problem(self.file, self.lines[key], ".".join(path), message)
        return Problem(self.file, None, ".".join(path), message)

    def fault(self, node: Node, path: KeyPath, message: str) -> None:
        line = None if self.in_flag else line_of(node.start_mark)
        self.problems.append(Problem(self.file, line, ".".join(path), message))


def compose(content: bytes, found: ParseState) -> dict[str, Any]:
    """Values of a recipe's text; raises RecipeError if it is not YAML, collects other errors."""
    line: int | None = 1
    text = ""
    try:
        text = content.decode("utf-8-sig")
        root = yaml.compose(text, Loader=_Loader)
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
        line = line_of(mark) if mark else None
        message = _unread(error)
    raise RecipeError((Problem(found.file, line, "", message),))


def line_of(mark: yaml.Mark) -> int:
    """Line from 1, as editors count; YAML ends lines at three more characters."""
    before = mark.buffer[: mark.pointer] if mark.buffer else ""
    return int(mark.line) + 1 - sum(before.count(end) for end in "\x85\u2028\u2029")


def _unread(error: yaml.MarkedYAMLError) -> str:
    no_yaml = "" if isinstance(error, _TooMuchError) else "not YAML: "
    return f"{no_yaml}{error.problem or error.context}"


def _root(root: MappingNode, found: ParseState) -> dict[str, Any]:
    values = _value(root, (), found)
    if values is None:
        raise RecipeError(in_order(found.problems))
    return cast(dict[str, Any], values)


def _value(node: Node, path: KeyPath, found: ParseState) -> object:
    found.values += 1
    if len(path) > DEEPEST or found.values > MOST_VALUES:
        limits = f"{DEEPEST} levels and {MOST_VALUES} values"
        found.fault(node, path, f"nested too deeply or repeated too often; the limit is {limits}")
        raise RecipeError(in_order(found.problems))
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


def _mapping(node: MappingNode, path: KeyPath, found: ParseState) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            found.fault(key_node, path, "a key must be a plain word")
            continue
        key = key_node.value
        if not key or not key.isprintable():
            found.fault(key_node, path, f"a key is {key!a}; it must be a plain word")
            continue
        if key_node.tag == "tag:yaml.org,2002:merge":
            found.fault(key_node, (*path, key), "merging is not supported; write the keys out")
            continue
        if key in values:
            first = found.lines[(*path, key)]
            found.fault(key_node, (*path, key), f"written twice; first on line {first}")
            continue
        found.lines[(*path, key)] = line_of(key_node.start_mark)
        values[key] = _value(value_node, (*path, key), found)
    return values


def _scalar(node: ScalarNode, path: KeyPath, found: ParseState) -> object:
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
    unusable = UNUSABLE.search(node.value)
    if unusable:
        found.fault(node, path, f"holds the character {unusable.group()!a}; leave it out")
        return None
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError):
        # PyYAML fails in each of these ways where a value is not of the kind its tag says.
        kind = node.tag.rpartition(":")[2]
        found.fault(node, path, f"cannot be read as {kind}: {node.value[:60]}")
        return None
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        found.fault(node, path, f"{node.value[:60]} is too large a number")
        return None
    return value


def override_value(values: dict[str, Any], override: str, found: ParseState) -> None:
    """Apply one `--set section.key=value` to the values; raises UsageError."""
    key, sign, text = override.partition("=")
    path = tuple(key.strip().split("."))
    shown = f"--set {_shown(override)}"
    if not sign or not all(path) or len(path) > DEEPEST:
        raise UsageError("flag", f"{shown}: expected section.key=value")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        what = error.problem if isinstance(error, _TooMuchError) else "not YAML"
        raise UsageError("flag", f"{shown}: the value is {what}") from error
    if node is None:
        raise UsageError("flag", f"{shown}: no value; write {key.strip()}=null for none")
    inside = ParseState(shown, in_flag=True)
    value = _value(node, path, inside)
    found.problems += inside.problems
    found.overridden[path] = inside.file
    found.lines = {k: line for k, line in found.lines.items() if k[: len(path)] != path}
    section = values
    for part in path[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise UsageError("flag", f"{shown}: {part} is not a section")
    section[path[-1]] = value


def _shown(override: str) -> str:
    """A flag, shortened and printable."""
    cut = override if len(override) <= MOST_SHOWN else f"{override[:MOST_SHOWN]}…"
    return cut if cut.isprintable() else ascii(cut)


def in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """The problems without duplicates, by line; of very many only the first."""
    found = sorted(dict.fromkeys(problems), key=lambda p: (p.line or 0, p.key))
    if len(found) <= MOST_PROBLEMS:
        return tuple(found)
    more = Problem(found[0].file, None, "", f"and more; these are the first {MOST_PROBLEMS} errors")
    return (*found[:MOST_PROBLEMS], more)
