"""Templates write what transformers writes, and stop where they would run or grow for ever."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from ftcli.data.templates import limits, sandbox, watch
from ftcli.data.templates.limits import LimitError
from ftcli.data.templates.sandbox import render
from tests.families import BUILDERS

GIVEN = {"messages": [{"role": "user", "content": "hello"}], "x": "aaaa", "ten": 10, "none": []}
BIG = "{% set b = 'a' * 100000 %}"
MANY = "{% set b = ['a' * 1000000] * 100000 %}"


@pytest.fixture(autouse=True)
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.3)


def reason_of(template: str) -> str:
    with pytest.raises(LimitError) as caught:
        render(template, GIVEN)
    return str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) if a %}{% for b in range(99999) if no %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | sort | length }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}"
        "{% endfor %}",
        "{% for a in range(99999) %}{{ (range(99999) | list).index(99998) }}{% endfor %}",
        "{{ ([range(99999) | list] * 99999) | sum(start=[]) | length }}",
    ],
)
def test_what_never_ends_is_stopped(template: str) -> None:
    assert reason_of(template) == "runs for more than 0.3 s"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * x }}",
        "{{ [1] * 10**9 }}",
        "{{ ten ** (ten ** ten) }}",
        "{% set n = namespace(v=9) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}",
        "{{ (('f' * 10000000) | int(base=16)) // 7 }}",
        "{{ 'a'.center(10**10) }}",
        "{{ x.ljust(1000000000) }}",
        "{{ x | round(10**9) }}",
        "{{ x | indent(10**10) }}",
        "{{ strftime_now('%Y' * 100000) }}",
        "{{ none | tojson(indent=10**10) }}",
        "{{ ten.to_bytes(10000000000, 'big') }}",
        "{{ '{:{w}}'.format(1, w=10**10) }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '%.*f' % (10**9, 1.5) }}",
    ],
)
def test_a_large_number_is_refused_before_it_is_used(template: str) -> None:
    assert reason_of(template).startswith("asks for ")


@pytest.mark.parametrize(
    "template",
    [
        "{{ '%0999999999d' % ten }}",
        "{{ '%.999999999f' | format(1.5) }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ '{0[k]:.99999f}'.format_map(x) }}",
    ],
)
def test_a_format_may_not_be_as_wide_as_a_book(template: str) -> None:
    assert reason_of(template) == "formats a value with 10,000 characters or more"


REFUSED = [
    *("attr", "batch", "center", "filesizeformat", "forceescape", "groupby", "pprint", "random"),
    *("slice", "striptags", "truncate", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"),
]


@pytest.mark.parametrize("name", REFUSED)
def test_a_filter_that_no_model_uses_is_refused_by_its_name(name: str) -> None:
    reason = f"uses the filter '{name}', which is not offered to chat templates"
    assert reason_of(f"{{{{ x | {name} }}}}") == reason
    assert reason_of(f"{{{{ [x] | map('{name}') | list }}}}") == reason
    assert render(f"{{% if none %}}{{{{ x | {name} }}}}{{% endif %}}", GIVEN) == ""


def test_every_filter_is_offered_or_refused() -> None:
    from jinja2.defaults import DEFAULT_FILTERS

    assert sorted((*sandbox.FILTERS, *REFUSED)) == sorted(DEFAULT_FILTERS)


LONG = "{% set t = ('aB <&\n' * 1500000) %}"
LISTS = (
    "{% set n = namespace(v=[]) %}{% set r = range(99999) | list %}{% set l = r * 100 %}"
    "{% set w = ('a b ' * 1000000).split() %}{% set d = [{'k': 'a', 'v': 1}] * 3000000 %}"
)
HEAVY = "{% set h = [[1] * 100000] * 100000 %}{% set i = [[1] * 100000] * 100000 %}"
PAIRS = "{% set h = ((1,) * 100000,) * 100000 %}{% set i = ((1,) * 100000,) * 100000 %}"
LARGE = [
    *(
        f"{LONG}{{{{ t | {name} | length }}}}"
        for name in (
            *("capitalize", "count", "default", "e", "escape", "first", "indent", "int", "float"),
            *(
                "last",
                "list",
                "lower",
                "max",
                "min",
                "replace('a', 'b')",
                "reverse",
                "safe",
                "sort",
            ),
            *("string", "title", "tojson", "trim", "unique | list", "upper", "join('b')", "format"),
            *("map('upper') | list", "select('eq', 'a') | list", "reject('lower') | list"),
            *("trim('ab' * 400000)", "tojson(indent=2)", "join | title | upper | title | length"),
        )
    ),
    *(
        f"{LISTS}{{{{ l | {name} | string | length }}}}"
        for name in (
            *("abs", "items | list", "join(', ')", "map('string') | list", "max", "min", "sort"),
            *("select('odd') | list", "reject('divisibleby', 3) | list", "sort(reverse=true)"),
            *("map('round', 2) | map('int') | map('float') | list", "sum", "tojson(indent=1)"),
            *("unique | list", "select('in', r) | list", "reject('in', l) | list", "round"),
        )
    ),
    *(
        f"{LISTS}{{{{ d | {name} | string | length }}}}"
        for name in (
            *("map(attribute='k') | list", "selectattr('k', 'eq', 'b') | list", "unique | list"),
            *("rejectattr('k', 'in', w) | list", "sum(attribute='v')", "max(attribute='v')"),
            *("sort(attribute='k,v')", "min(attribute='v')", "unique(attribute='k') | list"),
        )
    ),
    *(
        f"{LISTS}{{{{ w.{call} }}}}"
        for call in ("index('c')", "count('a')", "copy() | length", "__len__()")
    ),
    *(
        f"{LONG}{{{{ (t.{call}) | string | length }}}}"
        for call in (
            *("rfind('b' ~ t[:4000000])", "rindex('b' ~ t[:4000000])", "strip(t[::-1])"),
            *("rsplit('b' ~ t[:4000000])", "rpartition('b' ~ t[:4000000])", "lstrip('b' ~ t)"),
            *("find('b' ~ t[:4000000])", "count('b' ~ t[:4000000])", "split('a')", "splitlines()"),
            *("title()", "swapcase()", "encode('idna')", "encode('punycode')", "casefold()"),
            *("replace('a', t)", "translate({97: t})", "join(w)", "partition(t)", "istitle()"),
        )
    ),
    *(
        f"{start}{{{{ {act} }}}}"
        for start in (HEAVY, PAIRS)
        for act in (
            *("h == i", "h < i", "h in [i]", "[h].index(i)", "[h].count(i)", "h is eq(i)"),
            *("h is in([i])", "[h] is ge([i])", "[h, i] | max", "[h, i] | sort", "[h, i] | unique"),
            *("{'a': h} == {'a': i}", "{'a': h}.values() | list == [i]", "{'a': h} | dictsort"),
            *("{'a': h}.items() == {'a': i}.items()", "h[0:9] | string | length", "h | tojson"),
        )
    ),
    *(PAIRS + act for act in ("{{ {}[h] }}", "{{ {h: 1} }}", "{{ {}.get(h) }}", "{{ h in {} }}")),
    "{{ '{' ~ ':' * 10000000 }}{{ ('{' ~ ':' * 10000000) | format }}",
    "{{ ('{' ~ ':' * 10000000).format(1) }}",
    "{% set c = cycler(*range(99999)) %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{{ c.next() }}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("template", LARGE)
def test_every_filter_test_and_method_ends_with_large_inputs(template: str) -> None:
    """By its limit or because it is quick: processor time, of which a machine that is shared counts
    several times as much."""
    before = time.thread_time()
    with contextlib.suppress(LimitError, TemplateError, TypeError, ValueError, AttributeError):
        render(template, GIVEN)
    assert time.thread_time() - before < 20


def endless(_: object) -> object:
    """A loop that looks at no limit."""
    while True:
        pass


def swallowing(_: object) -> object:
    """Python keeps what is raised in a finaliser to itself."""

    class Dying:
        def __del__(self) -> None:
            endless(None)

    Dying()
    return endless(None)


@pytest.fixture
def uncooperative(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Filters that loop for ever, and templates compiled with them."""
    build = sandbox.environment_of

    def with_loops(kind: type[sandbox.Environment]) -> sandbox.Environment:
        environment = build(kind)
        environment.filters |= {"endless": endless, "swallowing": swallowing}
        return environment

    monkeypatch.setattr(sandbox, "environment_of", with_loops)
    sandbox.compile_template.cache_clear()
    yield
    sandbox.compile_template.cache_clear()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["endless", "swallowing"])
def test_a_loop_that_looks_at_no_limit_is_ended(
    name: str, uncooperative: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_SHOTS", 0.2)
    with ThreadPoolExecutor(2) as pool:
        there = [pool.submit(reason_of, f"{{{{ x | {name} }}}}") for _ in range(2)]
        here = reason_of(f"{{{{ x | {name} }}}}")
        assert {here, *(reason.result() for reason in there)} == {"runs for more than 0.3 s"}
    assert render("{{ x }}", GIVEN) == "aaaa"


def test_nothing_is_raised_behind_a_rendering(
    uncooperative: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that ends just when its time is up, again and again, and then goes on with others'."""
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_LOOKS", 0.0005)
    monkeypatch.setattr(limits, "SECONDS", 0.002)
    ended = 0
    for number in range(300):
        try:
            render(
                "{% for i in range(n) %}{% endfor %}{{ x | upper }}", {"n": 40 * number, "x": "a"}
            )
        except LimitError:
            ended += 1
        for _ in range(2000):
            pass
    assert 0 < ended < 300


def test_a_forked_process_has_a_watch_of_its_own(uncooperative: None) -> None:
    render("{{ x }}", GIVEN)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(reason_of, ("{{ x | endless }}",)) == "runs for more than 0.3 s"


@pytest.mark.parametrize(
    "step", ["n.v ~ n.v", "n.v + n.v", "(n.v, n.v) | join", "n.v.replace('a', 'aa')"]
)
def test_what_doubles_is_stopped(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 20.0)  # it is the size that ends it
    start = "{% set n = namespace(v=x) %}"
    reason = reason_of(f"{start}{{% for i in range(99) %}}{{% set n.v = {step} %}}{{% endfor %}}")
    assert reason.startswith(("writes more than", "takes more than"))


def test_lists_of_lists_are_kept_shallow() -> None:
    """Comparing two that hold another twice, thirty times over, would take for ever."""
    step = "{% set n.v = [n.v, n.v] %}{% set n.w = [n.w, n.w] %}"
    start = "{% set n = namespace(v=[1], w=[1]) %}"
    template = f"{start}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ n.v == n.w }}}}"
    assert reason_of(template) == "nests more than 16 lists"
    assert render(start + step * 3 + "{{ n.v == n.w }}", GIVEN) == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds to a limit on memory")
@pytest.mark.parametrize(
    "template",
    [
        BIG + "{{ b.replace('a', b) }}",
        BIG + "{{ b | replace('a', b) }}",
        BIG + "{{ b.translate({97: b}) }}",
        "{{ ('\t' * 100000).expandtabs(100000) }}",
        "{{ ('a\n' * 50000) | indent(100000) }}",
        MANY + "{{ b | join }}",
        MANY + "{{ ''.join(b) }}",
        MANY + "{{ b }}",
        "{% for i in range(99999) %}{{ 'a' * 10000000 ~ i }}{% endfor %}",
        "{% set c %}{% for i in range(99999) %}{{ 'a' * 10000000 ~ i }}{% endfor %}{% endset %}",
        "{% set n = namespace(v=[]) %}{% for i in range(99999) %}"
        "{% set n.v = n.v + ['a' * 10000000 ~ i] %}{% endfor %}",
    ],
)
def test_what_takes_much_memory_at_once_is_stopped(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 20.0)  # it is the memory that ends them
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert reason_of(template).startswith(("takes more than 500 MB", "writes more than"))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds to a limit on memory")
def test_memory_that_others_have_taken_since_does_not_count() -> None:
    import mmap

    render("{{ x }}", GIVEN)
    with mmap.mmap(-1, 2 * limits.MEMORY_BYTES):
        assert render("{{ 'a' * 20000000 }}", GIVEN) == "a" * 20_000_000


def test_the_limits_hold_in_another_thread() -> None:
    reasons: list[str] = []

    def work() -> None:
        reasons.append(reason_of("{{ 'a' * 10**10 }}"))
        reasons.append(
            reason_of(
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
            )
        )

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reasons) == sorted(
        2 * ["asks for 10,000,000,000 characters or rounds at once", "runs for more than 0.3 s"]
    )
    assert render("{{ x }}", GIVEN) == "aaaa"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in none %}" * 30 + "{% endfor %}" * 30, "nested blocks"),
        ("{% if none %}" * 200 + "{% endif %}" * 200, "indentation"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("{{ " + "9" * 5000 + " }}", "4300 digits"),
    ],
)
def test_a_template_that_python_cannot_compile_is_a_fault_of_its_text(
    template: str, reason: str
) -> None:
    with pytest.raises(TemplateSyntaxError, match=reason):
        render(template, GIVEN)


def test_a_template_as_long_as_a_book_is_refused() -> None:
    assert (
        reason_of("{{ x }}" * 200_000) == "is 1,400,000 characters long, and at most 1,000,000 may"
    )


def test_nothing_is_worked_out_while_a_template_is_compiled() -> None:
    render(
        "{% if none %}{{ 10**10**10 ~ ('a' * 10**10) }}{{ 'a' | center(10**10) }}{% endif %}", GIVEN
    )


def test_a_template_cannot_reach_python() -> None:
    for escape in ("{{ ''.__class__ }}{{ ''.__class__.mro() }}", "{{ lipsum.__globals__ }}"):
        with pytest.raises(TemplateError):
            render(escape, GIVEN)


# The same words as transformers'

CONVERSATIONS = [
    [("user", "a")],
    [
        ("user", "  two\n\n"),
        ("assistant", "\n x \t"),
        ("user", "größer 椅子 🪑"),
        ("assistant", "b"),
    ],
    [("system", "s"), ("user", "<|im_end|>{{ 7 }}"), ("assistant", "<think>\n\n</think>c")],
]


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_template_writes_what_transformers_writes(
    name: str, turns: list[tuple[str, str]], prompt: bool
) -> None:
    tokenizer = BUILDERS[name]().tokenizer
    messages = [{"role": role, "content": content} for role, content in turns]
    given = {
        "messages": messages,
        "add_generation_prompt": prompt,
        "tools": None,
        "documents": None,
    }
    variables = {**tokenizer.special_tokens_map, **given}

    def outcome(write: Any) -> str:
        try:
            return str(write())
        except TemplateError as error:
            return repr(error)

    theirs = outcome(
        lambda: tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
    )
    assert outcome(lambda: render(tokenizer.get_chat_template(), variables)) == theirs


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{% for i in range(3) %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
            None,
        ),
        ("{% for i in range(9) if i % 2 %}{{ loop.revindex }}{% else %}x{% endfor %}", None),
        (
            "{% for i in messages | map(attribute='role') %}{{ loop.length }}{{ i }}{% endfor %}",
            None,
        ),
        ("{% for k, v in messages[0].items() %}{{ k ~ v }}{{ loop.nextitem }}{% endfor %}", None),
        ("{% for i in nothing %}a{% else %}b{% endfor %}", "b"),
        (
            "{% for i in [1, [[3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
            None,
        ),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% set a, b = 1, (x, ten) %}{{ a ~ b }}{{ {'k': x, 'l': [x]}['l'] | tojson }}", None),
        ("{{ '%s-%05.1f' % (x, 2) }}{{ '{:>6}'.format(x) }}{{ (1, 2) + (3,) }}{{ 2 ** 8 }}", None),
        (
            "{{ [1, 2, 3] | sum }}{{ [[1], [2]] | sum(start=[]) }}{{ messages | length }}",
            None,
        ),
        (
            "{% macro f(a, b=x) %}{{ a ~ b ~ caller() }}{% endmacro %}{% call f(1) %}{% endcall %}",
            None,
        ),
        ("{% generation %}{{ x }}{% endgeneration %}{{ strftime_now('%Y') | length }}", "aaaa4"),
        (
            "{{ namespace(a=1).a }}{{ dict(b=x) }}{{ 7 // 2 }}{{ 7 / 2 }}{{ 7 % 4 }}{{ x * 2 }}",
            None,
        ),
    ],
)
def test_the_language_stays_whole(template: str, text: str | None) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template(template).render(**GIVEN)
    assert render(template, GIVEN) == theirs
    assert text is None or theirs == text


def test_the_limits_are_far_beyond_a_long_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    tokenizer = BUILDERS["chatml"]().tokenizer
    turns = [{"role": "user", "content": "a" * 1000}, {"role": "assistant", "content": "b" * 1000}]
    variables = {"messages": turns * 2500, "add_generation_prompt": False}
    assert len(render(tokenizer.get_chat_template(), variables)) > 5_000_000
    assert sandbox.LARGEST > 5_000_000
