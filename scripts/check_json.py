"""JSON as RFC 8259 has it, and a small part of JSON Schema (for check_scores.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

DEEPEST = 100
SPACE = re.compile(r"[ \t\r\n]*")
STRING = re.compile(r'"((?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)"')
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
WORDS = {"true": True, "false": False, "null": None}


class NotJsonError(Exception):
    """The text is not one JSON value."""


def read_json(text: str) -> Any:
    """The whole text as one value, no key twice in an object; raises NotJsonError."""
    value, end = _value(text, 0, 0)
    if end < len(text):
        raise NotJsonError(f"more text at character {end}")
    return value


def _value(text: str, start: int, depth: int) -> tuple[Any, int]:
    """The value behind white space at `start`, and the place behind it and its white space."""
    start = _skip(text, start)
    sign = text[start : start + 1]
    if sign and sign in "{[":
        if depth == DEEPEST:
            raise NotJsonError("too deep")
        return (_object if sign == "{" else _array)(text, start + 1, depth + 1)
    if sign == '"':
        value, end = _string(text, start)
        return value, _skip(text, end)
    for word, meant in WORDS.items():
        if text.startswith(word, start):
            return meant, _skip(text, start + len(word))
    number = NUMBER.match(text, start)
    if number is None:
        raise NotJsonError(f"no value at character {start}")
    return _number(number[0]), _skip(text, number.end())


def _object(text: str, start: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    start = _skip(text, start)
    if text.startswith("}", start):
        return found, _skip(text, start + 1)
    while True:
        name, end = _string(text, _skip(text, start))
        if name in found:
            raise NotJsonError(f"{name} stands twice")
        found[name], end = _value(text, _sign(text, _skip(text, end), ":"), depth)
        if text.startswith("}", end):
            return found, _skip(text, end + 1)
        start = _sign(text, end, ",")


def _array(text: str, start: int, depth: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    start = _skip(text, start)
    if text.startswith("]", start):
        return found, _skip(text, start + 1)
    while True:
        value, end = _value(text, start, depth)
        found.append(value)
        if text.startswith("]", end):
            return found, _skip(text, end + 1)
        start = _sign(text, end, ",")


def _string(text: str, start: int) -> tuple[str, int]:
    match = STRING.match(text, start)
    if match is None:
        raise NotJsonError(f"no text at character {start}")
    plain = ESCAPE.sub(lambda e: chr(int(e[1], 16)) if e[1] else SHORT.get(e[2], e[2]), match[1])
    # Two escapes of UTF-16 may be one character.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"), match.end()


def _number(written: str) -> int | float | Decimal:
    try:
        return int(written) if written.lstrip("-").isdecimal() else Decimal(written)
    except (ValueError, InvalidOperation):
        return float(written)


def _sign(text: str, position: int, sign: str) -> int:
    if not text.startswith(sign, position):
        raise NotJsonError(f"no {sign} at character {position}")
    return position + 1


def _skip(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position


def canonical(value: Any) -> Any:
    """Equal, and hashed alike, for values that JSON holds equal: 1 and 1.0, not 1 and true."""
    if isinstance(value, dict):
        return ("object", frozenset((name, canonical(inner)) for name, inner in value.items()))
    if isinstance(value, list):
        return ("list", tuple(map(canonical, value)))
    if value is None or isinstance(value, bool | str):
        return (type(value).__name__, value)
    return ("number", value)


Schema = bool | Mapping[str, Any]


def conforms(value: Any, schema: Schema) -> bool:
    """Whether a value is what a schema of the words in CHECKS allows."""
    if isinstance(schema, bool):
        return schema
    return all(CHECKS[word](value, schema[word], schema) for word in schema if word in CHECKS)


def unknown_words(schema: Any) -> set[str]:
    """Words of a schema that are not checked here."""
    if not isinstance(schema, dict):
        return set()
    found = set(schema) - set(CHECKS) - REMARKS
    if re.search(r"draft-0[34]", str(schema.get("$schema", ""))):
        found.add("$schema")
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    inner += [schema.get("items"), schema.get("additionalProperties")]
    return found.union(*map(unknown_words, inner))


REMARKS = {"$schema", "$id", "$comment", "title", "description", "default", "examples", "format"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == value // 1,
}


def _type(value: Any, wanted: str | list[str], _: Any) -> bool:
    return any(TYPES[each](value) for each in ([wanted] if isinstance(wanted, str) else wanted))


def _properties(value: Any, wanted: Mapping[str, Schema], _: Any) -> bool:
    if not isinstance(value, dict):
        return True
    return all(conforms(value[name], inner) for name, inner in wanted.items() if name in value)


def _other_properties(value: Any, wanted: Schema, schema: Mapping[str, Any]) -> bool:
    if not isinstance(value, dict):
        return True
    others = [value[name] for name in value if name not in schema.get("properties", {})]
    return all(conforms(other, wanted) for other in others)


def _length(least: bool, kind: type) -> Callable[[Any, int, Any], bool]:
    def check(value: Any, limit: int, _: Any) -> bool:
        if not isinstance(value, kind):
            return True
        found: int = len(value)  # type: ignore[arg-type]
        return found >= limit if least else found <= limit

    return check


def _bound(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Any], bool]:
    return lambda value, limit, _: not _is_number(value) or holds(value, limit)


CHECKS: dict[str, Callable[[Any, Any, Any], bool]] = {
    "type": _type,
    "enum": lambda value, wanted, _: canonical(value) in map(canonical, wanted),
    "const": lambda value, wanted, _: canonical(value) == canonical(wanted),
    "properties": _properties,
    "required": lambda value, names, _: not isinstance(value, dict) or set(names) <= set(value),
    "additionalProperties": _other_properties,
    "items": lambda value, inner, _: (
        not isinstance(value, list) or all(conforms(each, inner) for each in value)
    ),
    "anyOf": lambda value, schemas, _: any(conforms(value, each) for each in schemas),
    "uniqueItems": lambda value, wanted, _: (
        not wanted or not isinstance(value, list) or len(set(map(canonical, value))) == len(value)
    ),
    "pattern": lambda value, pattern, _: (
        not isinstance(value, str) or re.search(pattern, value) is not None
    ),
    "minItems": _length(True, list),
    "maxItems": _length(False, list),
    "minLength": _length(True, str),
    "maxLength": _length(False, str),
    "minProperties": _length(True, dict),
    "maxProperties": _length(False, dict),
    "minimum": _bound(lambda value, limit: value >= limit),
    "maximum": _bound(lambda value, limit: value <= limit),
    "exclusiveMinimum": _bound(lambda value, limit: value > limit),
    "exclusiveMaximum": _bound(lambda value, limit: value < limit),
}
