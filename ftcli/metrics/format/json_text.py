"""One answer as JSON: read as a script would read it, with the places of what stands in it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ftcli.data.json_rows import JSON_SPACE, LENIENT, STRICT
from ftcli.metrics.format.part import shown
from ftcli.metrics.scorer import Finding

KIND = "not JSON"
# Records are a few levels deep; a model that repeats itself may open many brackets.
DEEPEST = 100
FENCE = re.compile(r"\s*(```[^\n]*)")
Step = str | int


@dataclass(frozen=True)
class JsonText:
    """A value, or what keeps the text from being one."""

    value: object = None
    fault: Finding | None = None


def read_json_text(text: str) -> JsonText:
    """The whole text as one JSON value: no NaN, no key twice, nothing before or after it."""
    try:
        value = STRICT.decode(text)
    except json.JSONDecodeError as error:
        return JsonText(fault=_fault(text, error))
    except RecursionError:
        return JsonText(fault=_too_deep())
    except ValueError as error:
        return JsonText(fault=Finding(KIND, shown(str(error).removeprefix("not JSON: "))))
    return JsonText(fault=_too_deep()) if _is_deep(value) else JsonText(value)


def place_of(text: str, path: Sequence[Step]) -> tuple[int, int] | None:
    """Characters [start, end) of the value at this path of a text that is JSON."""
    start = _after_space(text, 0)
    for step in path:
        found = _child(text, start, step)
        if found is None:
            return None
        start = found
    return start, LENIENT.raw_decode(text, start)[1]


def place_of_key(text: str, path: Sequence[Step], key: str) -> tuple[int, int] | None:
    """Characters of a key, with its quotes, of the object at this path."""
    place = place_of(text, path)
    if place is None or not text.startswith("{", place[0]):
        return None
    position = _after_space(text, place[0] + 1)
    while text.startswith('"', position):
        name, end = LENIENT.raw_decode(text, position)
        if name == key:
            return position, end
        position = _after_value(text, _after_space(text, end))
    return None


def _child(text: str, start: int, step: Step) -> int | None:
    """Where the value of a key, or of an index, begins."""
    inside = _after_space(text, start + 1)
    if isinstance(step, str) and text.startswith("{", start):
        while text.startswith('"', inside):
            name, end = LENIENT.raw_decode(text, inside)
            colon = _after_space(text, end)
            if name == step:
                return _after_space(text, colon + 1)
            inside = _after_value(text, colon)
        return None
    if isinstance(step, int) and text.startswith("[", start):
        for _ in range(step):
            inside = _after_value(text, inside - 1)
        return inside
    return None


def _after_value(text: str, sign: int) -> int:
    """Past the value behind a colon, comma or bracket, and past the comma behind that."""
    _, end = LENIENT.raw_decode(text, _after_space(text, sign + 1))
    end = _after_space(text, end)
    return _after_space(text, end + 1) if text.startswith(",", end) else end


def _fault(text: str, error: json.JSONDecodeError) -> Finding:
    fence = FENCE.match(text)
    if fence:
        message = "in a code fence: a script that reads the whole answer fails on it"
        return Finding(KIND, message, *fence.span(1))
    if not text.strip():
        return Finding(KIND, "empty")
    if error.msg == "Extra data":
        return Finding(KIND, "more text after the JSON value", error.pos, len(text))
    what = error.msg.removesuffix(" at")
    if error.pos >= len(text):
        return Finding(KIND, f"ends too early: {what}")
    return Finding(KIND, f"{what} at character {error.pos + 1}", error.pos, error.pos + 1)


def _too_deep() -> Finding:
    return Finding(KIND, f"more than {DEEPEST} levels deep")


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _after_space(text: str, position: int) -> int:
    match = JSON_SPACE.match(text, position)
    return match.end() if match else position
