"""Work that is one instruction of Python, which nothing can end once it has begun."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, KeysView, ValuesView
from typing import Any

from ftcli.data.templates.limits import LimitError

# Items that a comparison may look at, those of a list in two places twice: about 0.1 s.
HEAVIEST = 5_000_000
# Characters of a text times those that are looked for at each: below 1 s.
MOST_STEPS = 1_000_000_000
# Methods that look for the whole of what they are given at each character of their text.
SEARCHES = frozenset(("rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip"))
HOLDERS = (list, tuple, dict, KeysView, ValuesView, ItemsView)


def require_light(value: Any) -> Any:
    """The value; raises LimitError where to compare it, or to hash it, would take long."""
    if isinstance(value, HOLDERS):
        _weigh(value, {}, HEAVIEST)
    return value


def _weigh(value: Any, known: dict[int, int], most: int) -> int:
    """Items in lists in lists, each as often as it is reached."""
    weight = len(value)
    for inner in _inside(value):
        if isinstance(inner, HOLDERS):
            if id(inner) not in known:
                known[id(inner)] = _weigh(inner, known, most)
            weight += known[id(inner)]
            if weight > most:
                break
    if weight > most:
        raise LimitError(f"compares more than {most:,} items at once")
    return weight


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return (inner for pair in value.items() for inner in pair)
    return value


def require_quick(method: Any, args: tuple[Any, ...]) -> None:
    """Raise LimitError before a method of Python's own that would be long under way."""
    holder = method.__self__
    if isinstance(holder, str | bytes):
        if method.__name__ in SEARCHES and args:
            require_quick_search(method.__name__, holder, args[0])
        return
    require_light(holder)
    for value in args:
        require_light(value)


def require_quick_search(method: str, text: object, wanted: object) -> None:
    """Raise LimitError where a method of a text would look for much at many places."""
    if isinstance(text, str | bytes) and isinstance(wanted, str | bytes):
        steps = len(text) * len(wanted)
        if steps > MOST_STEPS:
            raise LimitError(f"compares {steps:,} characters at once ({method})")
