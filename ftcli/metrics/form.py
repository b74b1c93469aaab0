"""Whether an answer has the form that the recipe asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import assert_never

from ftcli.recipe import AnswerFormat, JsonFormat, RegexFormat


def form_check(wanted: AnswerFormat) -> Callable[[str], bool]:
    """A function that says of one answer whether it has the form."""
    match wanted:
        case RegexFormat():
            pattern = re.compile(wanted.pattern)
            return lambda answer: pattern.fullmatch(answer.strip()) is not None
        case JsonFormat():
            return lambda answer: _is_object(answer, wanted.keys)
        case _:
            assert_never(wanted)


def _is_object(answer: str, keys: list[str]) -> bool:
    try:
        value = json.loads(answer, parse_constant=_no_json, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):  # a model that repeats itself may open many brackets
        return False
    return isinstance(value, dict) and (not keys or sorted(value) == sorted(keys))


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is Python's, not JSON's")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands there twice")
    return values
