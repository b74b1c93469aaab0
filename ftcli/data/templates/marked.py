"""A chat template rendered with marks in the place of contents, where it does not look at these.

What it writes then is what it writes around any contents. Every operation that a template has goes
through its environment, and this one lets a marked text do no more than be written, be joined to
others and be stripped: whatever else would make the template's way depend on a content.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Macro, Undefined
from jinja2.utils import Namespace

from ftcli.data.templates.guarding import filtered
from ftcli.data.templates.limits import LimitError
from ftcli.data.templates.sandbox import (
    TEMPLATE_FAULTS,
    Environment,
    compile_in,
    environment_of,
    run,
)

# Private-use characters, which no template writes by itself.
BEGIN, END = "\ue000", "\ue001"
# How Python writes one within the text of a list: there, quotes would depend on the content.
ESCAPED = ascii(BEGIN)[1:-1]

STRIPS = frozenset(("strip", "lstrip", "rstrip"))
# Filters that hand on what they are given, and those that do with lists what asks nothing of items;
# filters and tests that these call for each item are called through the environment.
HAND_ON = frozenset(("d", "default", "string"))
OF_LISTS = frozenset(
    (
        *("count", "first", "items", "join", "last", "length", "list", "map", "reject"),
        *("rejectattr", "reverse", "select", "selectattr"),
    )
)
OWN = frozenset(("bounded", "counted", "light", "shallow"))
# What jinja2 hands on to functions that take the whole context, of which there are none.
LOCALS = frozenset(("_loop_vars", "_block_vars"))
# Tests that any two texts pass alike.
OF_TYPES = frozenset(
    (
        *("boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping"),
        *("none", "number", "sequence", "string", "true", "undefined"),
    )
)


class LooksError(Exception):
    """The template asks something of a content."""


def mark(number: int) -> str:
    """What stands for a content: not empty, and without white space at its borders."""
    return f"{BEGIN}{number}{END}"


class MarkedTemplate:
    """A template that is given marks for contents."""

    def __init__(self, text: str) -> None:
        self._environment = environment_of(_Marking)
        for name, function in self._environment.filters.items():
            self._environment.filters[name] = _watched_filter(self._environment, name, function)
        for name, test in self._environment.tests.items():
            self._environment.tests[name] = _watched_test(name, test)
        self._environment.filters |= {"unmarked": _unmarked, "unmarked_keys": _unmarked_keys}
        self._environment.filters |= {"unmarked_text": _unmarked_text}
        self._text = text

    def render(self, variables: dict[str, Any]) -> str | None:
        """What it writes; None where it asks something of a content, or refuses the turns."""
        try:
            written = run(self._compiled, variables)
        except (LooksError, LimitError, *TEMPLATE_FAULTS):
            return None
        return None if ESCAPED in written else written

    @property
    def strips(self) -> bool:
        """Whether it has stripped a text: white space at a content's borders would be gone."""
        return self._environment.strips

    @functools.cached_property
    def _compiled(self) -> Any:
        return compile_in(self._environment, self._text)


class _Marking(Environment):
    """Raises LooksError where more is asked of a marked text than to be joined or stripped.

    That it is true is known: no content is empty.
    """

    strips = False

    def guard(self, tree: nodes.Template) -> None:
        for node in list(tree.find_all(nodes.Node)):
            _watch(node)
        super().guard(tree)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _is_marked(left) or _is_marked(right):
            plain = type(left) is type(right) and type(left) in (str, list)
            if operator != "+" or not plain:
                raise LooksError
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute not in STRIPS:
            _unmarked_index(obj)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _unmarked_index(obj)
        return super().getitem(obj, _unmarked(argument))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *(kwargs[name] for name in kwargs.keys() - LOCALS))
        if _is_text(getattr(__obj, "__self__", None)):  # of its methods `getattr` gives these alone
            __self.strips = True
            if given:
                raise LooksError
        if not (isinstance(__obj, Macro) or __obj is Namespace or __obj is dict):
            for value in given:
                _unmarked(value)
        return super().call(__context, __obj, *args, **kwargs)


def _watch(node: nodes.Node) -> None:
    """Make filters of what no override of an environment sees."""
    match node:
        case nodes.EvalContextModifier() | nodes.ScopedEvalContextModifier():  # escapes contents
            raise LooksError
        case nodes.Compare():
            node.expr = filtered(node.expr, "unmarked")
            for operand in node.ops:
                keys = operand.op in ("in", "notin")
                operand.expr = filtered(operand.expr, "unmarked_keys" if keys else "unmarked")
        case nodes.Getitem() if isinstance(node.arg, nodes.Slice):
            node.node = filtered(node.node, "unmarked_text")
        case nodes.Pair():
            node.key = filtered(node.key, "unmarked")
        case nodes.For() if isinstance(node.target, nodes.Tuple):
            node.iter = filtered(node.iter, "unmarked")
        case nodes.Assign() if isinstance(node.target, nodes.Tuple):
            node.node = filtered(node.node, "unmarked")


def _watched_filter(
    environment: _Marking, name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    passed = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        value, *others = (*args[passed:], *kwargs.values())
        if name == "trim" and not others and _is_text(value):
            environment.strips = True
        elif name in OF_LISTS or name == "counted":
            _unmarked_text(value)
        elif name not in HAND_ON and name not in OWN:
            for each in (value, *others):
                _unmarked(each)
        return function(*args, **kwargs)

    return watched


def _watched_test(name: str, test: Any) -> Callable[..., Any]:
    @functools.wraps(test)
    def watched(*args: Any) -> Any:
        if name not in OF_TYPES:
            for value in args:
                _unmarked(value)
        return test(*args)

    return watched


def _unmarked(value: Any) -> Any:
    """The value; raises LooksError where it holds a marked text, or may."""
    if _is_marked(value):
        raise LooksError
    return value


def _unmarked_keys(value: Any) -> Any:
    """The value, of which `in` sees no more than the keys where it has any."""
    _unmarked(list(value) if isinstance(value, dict) else value)
    return value


def _unmarked_text(value: Any) -> Any:
    """The value, of which a text alone is looked into."""
    if _is_text(value):
        raise LooksError
    return value


def _unmarked_index(value: Any) -> None:
    """Raise LooksError where what is found in it would depend on a content."""
    for text in (value, *(value if isinstance(value, dict) else ())):
        _unmarked_text(text)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and (BEGIN in value or ESCAPED in value)


def _is_marked(value: Any) -> bool:
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, dict):
        return any(map(_is_marked, (*value, *value.values())))
    if isinstance(value, list | tuple):
        return any(map(_is_marked, value))
    # of anything else, such as a generator, nobody knows what it gives
    return not (value is None or isinstance(value, bool | int | float | Undefined | Macro))
