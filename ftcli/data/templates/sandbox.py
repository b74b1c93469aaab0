"""Chat templates rendered within limits: they come with a model, which strangers have made.

transformers gives a template a sandbox that keeps it from the machine, but lets it loop and grow
for ever. Here rounds of loops, calls and operators are counted, what they ask for is looked at
before, and what they have made behind; a second thread ends what runs in between.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinMethodType
from typing import Any, TypeVar, cast

from jinja2 import Template, nodes, pass_environment
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.filters import do_format, do_sum
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ftcli.compat import chat_template_environment
from ftcli.data.templates import limits
from ftcli.data.templates.guarding import guard
from ftcli.data.templates.limits import MEMORY_BYTES, Budget, Ceiling, LimitError
from ftcli.data.templates.watch import TimeIsUp, watch
from ftcli.data.templates.weighing import require_light, require_quick, require_quick_search

# Characters of one text, or items of one list: a context of a million tokens has 5 million.
LARGEST = 50_000_000
# No template has a reason to count further; the sandbox's own range() ends at 100,000.
LARGEST_NUMBER = 1_000_000
MOST_BITS = 4096
# Lists in lists: two that hold another twice, and so on, would take for ever to compare.
DEEPEST = 16
# Of the template itself; those that models come with have up to 50,000 characters.
LONGEST_TEMPLATE = 1_000_000

# A width or a precision in a format, such as `%.99999f` or `{:>99999}`.
LONG_FIELD = re.compile(r"%[^%A-Za-z]*\d{5}|\{[^{}:]*+:[^{}]*\d{5}")
# Of a format of the date.
LONGEST_DATE = 1000

# What the templates of models use and their like; the others are for pages of the web, long in
# the making, or not the same twice (`random`).
FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
    *("format", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max"),
    *("min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr"),
    *("sort", "string", "sum", "title", "tojson", "trim", "unique", "upper"),
)
WEIGHED_FILTERS = frozenset(("dictsort", "max", "min", "sort", "tojson", "unique"))
GLOBALS = ("cycler", "dict", "joiner", "namespace", "raise_exception", "range")

# What a template may raise when it is rendered: its own faults, and those of the Python beneath.
TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)

_budget, _ceiling = Budget(), Ceiling()


def render(template: str, variables: Mapping[str, Any]) -> str:
    """What a chat template writes, as transformers' `apply_chat_template` does.

    Raises LimitError and TEMPLATE_FAULTS.
    """
    return run(compile_template(template), variables)


def run(compiled: Template, variables: Mapping[str, Any]) -> str:
    """`render` of a template that is compiled."""
    _budget.begin()
    try:
        with _ceiling:
            return _watched(compiled, variables)
    except MemoryError as error:
        if not _ceiling.was_old():
            raise LimitError(f"takes more than {MEMORY_BYTES / 1e6:.0f} MB") from error
    finally:
        _budget.end()
    return run(compiled, variables)


def _watched(compiled: Template, variables: Mapping[str, Any]) -> str:
    """Raises LimitError in whatever part of the work the time is up."""
    work = watch.enter(limits.SECONDS)
    try:
        try:
            return cast(str, _bounded(compiled.render(variables)))
        finally:
            watch.leave(work)
    except TimeIsUp:
        watch.leave(work)
        raise limits.too_long() from None


@functools.lru_cache(maxsize=32)
def compile_template(text: str) -> Template:
    """The template in our environment; raises TemplateSyntaxError or LimitError."""
    return compile_in(environment_of(Environment), text)


def compile_in(environment: Environment, text: str) -> Template:
    """`compile_template` in an environment of `environment_of`."""
    if len(text) > LONGEST_TEMPLATE:
        raise LimitError(f"is {len(text):,} characters long, and at most {LONGEST_TEMPLATE:,} may")
    try:
        tree = environment.parse(text)
        environment.guard(tree)
        tree.set_environment(environment)
        return environment.from_string(tree)
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        # Python's own limits on nesting, and on the digits of a number.
        raise TemplateSyntaxError(f"Python cannot compile it: {error}", 1) from error


class Environment(ImmutableSandboxedEnvironment):
    """Looks at operators and calls; none of them is worked out while the template is compiled."""

    intercepted_binops = frozenset(("+", "*", "**", "%", "/", "//"))

    def guard(self, tree: nodes.Template) -> None:
        """Make filters of what no override here sees."""
        guard(tree)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str:
            return _bounded(left + right)
        _require_moderate(operator, left, right)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _require_small(args, kwargs)
        if type(__obj) is BuiltinMethodType:
            require_quick(__obj, args)
        made = super().call(__context, __obj, *args, **kwargs)
        return _shallow(made) if isinstance(made, dict) else _bounded(made)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _require_short_fields(value.__self__)
        return wrapped


Made = TypeVar("Made", bound=Environment)


def environment_of(kind: type[Made]) -> Made:
    """The filters, functions and tags of transformers' environment in one of ours."""
    theirs = chat_template_environment()
    ours = kind(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    ours.filters = {name: _refused(name) for name in theirs.filters}
    ours.filters |= {name: _limited(name, theirs.filters[name]) for name in FILTERS}
    ours.filters |= {"counted": _Counted, "bounded": _bounded, "shallow": _shallow}
    ours.filters |= {"light": require_light}
    ours.filters |= {"sum": _sum, "format": _limited("format", _format)}
    ours.tests = {name: _light(test) for name, test in theirs.tests.items()}
    ours.globals = {name: theirs.globals[name] for name in GLOBALS}
    ours.globals["strftime_now"] = functools.partial(_date, theirs.globals["strftime_now"])
    return ours


def _refused(name: str) -> Callable[..., Any]:
    """In the place of a filter that is not offered."""

    def refused(*_: Any, **__: Any) -> Any:
        raise LimitError(f"uses the filter {name!r}, which is not offered to chat templates")

    return refused


def _light(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test with a look at lists that it may compare."""

    @functools.wraps(test)
    def light(*args: Any) -> Any:
        for value in args:
            if isinstance(value, list | tuple | dict):
                require_light(value)
        return test(*args)

    return light


def _date(write: Callable[[str], str], form: str) -> str:
    _require_at_most(LONGEST_DATE, len(form))
    return write(form)


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with a look before and behind it."""
    weighed, searches = name in WEIGHED_FILTERS, name == "trim"

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _budget.require_begun()
        _require_small(args, kwargs)
        if weighed:
            for value in args:
                require_light(value)
        if searches:
            for wanted in (*args[1:], *kwargs.values()):
                require_quick_search(name, args[0], wanted)
        return _bounded(function(*args, **kwargs))

    return limited


class _Counted:
    """What a loop goes over, each round counted; `loop.length` still knows its length."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        spend = _budget.spend
        for item in self._items:
            spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)


@pass_environment
def _sum(environment: Any, items: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Jinja's own, with a look before each item: sums of lists grow."""

    def looked() -> Iterator[Any]:
        for item in items:
            _budget.look()
            yield item

    return _bounded(do_sum(environment, looked(), attribute, start))


def _format(value: Any, *args: Any, **kwargs: Any) -> Any:
    """Jinja's own, without fields as wide as a book."""
    _require_short_fields(value)
    return do_format(value, *args, **kwargs)


# Looks before and behind


def _bounded(value: Any) -> Any:
    _budget.spend()
    if isinstance(value, str | bytes | list | tuple) and len(value) > LARGEST:
        raise LimitError(f"writes more than {LARGEST:,} characters")
    return value


def _shallow(value: Any) -> Any:
    level = {id(value): value}
    for _ in range(DEEPEST):
        level = {id(inner): inner for outer in level.values() for inner in _inside(outer)}
        if not level:
            return _bounded(value)
    raise LimitError(f"nests more than {DEEPEST} lists")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _require_small(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise where a call is given a number that would make it long or large."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
            raise _asks_for(value)


def _require_moderate(operator: str, left: Any, right: Any) -> None:
    """Raise before an operator whose result would be long in the making."""
    if operator == "%" and isinstance(left, str):
        _require_short_fields(left)
        _require_small(right if isinstance(right, tuple) else (), {})
    for value, other in ((left, right), (right, left)):
        if not isinstance(value, int):
            continue
        if value.bit_length() > MOST_BITS:
            raise _asks_for(value)
        if operator == "*" and isinstance(other, str | bytes | list | tuple):
            _require_at_most(LARGEST, len(other) * value)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        _require_at_most(MOST_BITS, left.bit_length() * abs(right))


def _require_short_fields(text: object) -> None:
    if isinstance(text, str) and LONG_FIELD.search(text):
        raise LimitError("formats a value with 10,000 characters or more")


def _require_at_most(limit: int, number: int) -> None:
    if number > limit:
        raise _asks_for(number)


def _asks_for(number: int) -> LimitError:
    shown = f"{number:,}" if number.bit_length() < MOST_BITS else "more than 10¹⁰⁰⁰"
    return LimitError(f"asks for {shown} characters or rounds at once")
