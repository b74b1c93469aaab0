"""How much of a record an answer has right, field by field.

A *field* is what no object holds further apart, named by its dotted path: `size.width`. A list is
one field. Two values are the same as JSON has it: 1 and 1.0 are, 1 and true, or "a" and "A", are
not; lists in the same order, objects in any.

Accuracy looks at whole fields: of all fields of either record, those that stand in both with the
same value. A field that is missing is not the same as one that is null.

F1 looks at *items*: a list has one for each element, however often it stands there, and any other
value one. What says nothing (missing, null, an empty list or object) has none. Hits are items that
stand in the same field of both, in any order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Path = tuple[str, ...]
# What a record that is no object is called.
WHOLE = "(whole)"


@dataclass(frozen=True)
class FieldCounts:
    """What one answer adds: fields that are the same of all fields; 2 · hits of items of both."""

    accuracy: tuple[float, float]
    items: Mapping[str, tuple[float, float]]
    """Name of each field of either record → 2 · hits, and items found + items wanted."""
    wanted: tuple[str, ...]
    """Names of the reference's fields, in its order."""
    different: tuple[tuple[Path, object, object], ...]
    """Fields of both with another value: path, the answer's value, the reference's."""

    @property
    def micro(self) -> tuple[float, float]:
        """F1 over all fields together."""
        tops, bottoms = zip(*self.items.values(), strict=True) if self.items else ((), ())
        return sum(tops), sum(bottoms)


def compare_fields(answer: object, reference: object, *, answered: bool) -> FieldCounts:
    """Hold a record against the reference; one that is none (not `answered`) misses all of it."""
    found = dict(_fields(answer)) if answered else {}
    wanted = dict(_fields(reference))
    paths = list(dict.fromkeys((*wanted, *found)))
    same = [p for p in paths if p in found and p in wanted and _key(found[p]) == _key(wanted[p])]
    items: dict[str, tuple[float, float]] = {}
    for path in paths:
        have, want = _items(found.get(path)), _items(wanted.get(path))
        top, bottom = items.get(_name(path), (0.0, 0.0))
        hits = (have & want).total()
        items[_name(path)] = top + 2.0 * hits, bottom + have.total() + want.total()
    different = [p for p in paths if p in found and p in wanted and p not in set(same)]
    return FieldCounts(
        (float(len(same)), float(len(paths))),
        items,
        tuple(dict.fromkeys(_name(path) for path in wanted)),
        tuple((path, found[path], wanted[path]) for path in different),
    )


def _fields(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    if isinstance(value, dict) and (value or not path):
        for name, inner in value.items():
            yield from _fields(inner, (*path, name))
    else:
        yield path, value


def _name(path: Path) -> str:
    return ".".join(path) if path else WHOLE


def _items(value: object) -> Counter[str]:
    if value is None or value == {}:
        return Counter()
    return Counter(_key(item) for item in (value if isinstance(value, list) else [value]))


def _key(value: object) -> str:
    """The same text for the same value."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: object) -> object:
    match value:
        case bool() | str() | None:
            return value
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case float() if value.is_integer():
            return int(value)
        case float():
            return float(value)  # not as its file has spelt it
        case _:
            return value
