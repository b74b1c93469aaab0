"""Templates render as in transformers, and are stopped if they run or grow without end."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ftcli.data.example import Message
from ftcli.data.templates import worker
from ftcli.data.templates.render import ChatTemplate, Refused, Rendered
from ftcli.data.templates.worker import LimitError, render, render_batches
from tests.families import BUILDERS, family_named
from tests.tiers import tiers

TURNS = (Message("user", "hello"),)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds to a limit on memory")
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BIG = "{% set b = 'a' * 100000 %}"
MANY = "{% set b = ['a' * 1000000] * 100000 %}"
HEAVY = "{% set h = [[1] * 100000] * 100000 %}{% set i = [[1] * 100000] * 100000 %}"


def template(text: str, seconds: float = 0.3) -> ChatTemplate:
    return ChatTemplate(
        text,
        {"x": "aaaa", "ten": 10},
        last_only=False,
        special="(?!)",
        added="(?!)",
        seconds=seconds,
    )


def written(text: str, turns: tuple[Message, ...] = TURNS) -> str:
    (found,) = render(template(text), [turns], prompt=True)
    return found.text if isinstance(found, Rendered) else found.reason


def limit_of(text: str, seconds: float = 0.3) -> str:
    with pytest.raises(LimitError) as caught:
        render(template(text, seconds), [TURNS], prompt=True)
    assert written("{{ x }}") == "aaaa", "the next template is rendered as if nothing had been"
    return str(caught.value)


RUNS_TOO_LONG = [
    LOOP,
    # One instruction of Python, which no exception could end.
    HEAVY + "{{ [h, i] | sort }}",
    HEAVY + "{{ h == i }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in range(99999) %}{{ (range(99999) | list).index(99998) }}{% endfor %}",
    "{% set n = namespace(v=9) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}",
]


@pytest.mark.parametrize("text", tiers(RUNS_TOO_LONG, *RUNS_TOO_LONG[:2]))
def test_what_runs_too_long_is_ended(text: str) -> None:
    assert limit_of(text) == "runs for more than 0.3 s"


TAKES_MUCH_MEMORY = [
    "{{ 'a' * 10**10 }}",
    BIG + "{{ b.replace('a', b) }}",
    MANY + "{{ b | join }}",
    "{{ [x] * 10**9 }}",
    "{{ 'a'.center(10**10) }}",
    "{{ x | indent(10**10) }}",
    "{{ '%0999999999d' % ten }}",
    "{{ '{:>9999999999}'.format(1) }}",
    BIG + "{{ b.translate({97: b}) }}",
    "{% set n = namespace(v=x) %}{% for i in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 10000000 ~ i }}{% endfor %}",
]


@LINUX
@pytest.mark.parametrize("text", tiers(TAKES_MUCH_MEMORY, *TAKES_MUCH_MEMORY[:3]))
def test_what_takes_much_memory_is_refused_it(text: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    # What the process has freed may be taken again.
    assert limit_of(text, seconds=20).startswith(("takes more than 500 MB", "writes more than"))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_text_longer_than_any_conversation_is_refused() -> None:
    # In parts: jinja compiles a product of constants as one, which takes much more memory.
    text = "{% for i in range(5001) %}{{ x * 2500 }}{% endfor %}"
    assert limit_of(text, seconds=20) == "writes more than 50,000,000 characters"
    reason = "is 1,400,000 characters long; the limit is 1,000,000"
    assert limit_of("{{ x }}" * 200_000) == reason


def test_a_process_that_is_killed_is_said_and_replaced() -> None:
    written("{{ x }}")
    running = worker._Worker.current
    assert running is not None
    os.kill(running._pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (running._pid, signal.SIGKILL))
    killer.start()
    assert limit_of("{{ x }}") == "ends the process that renders it (SIGKILL)"


def test_a_fault_of_our_own_is_not_blamed_on_the_template() -> None:
    with pytest.raises(RuntimeError, match="AttributeError"):
        render(template("{{ x }}"), [[None]], prompt=True)  # type: ignore[list-item]
    assert written("{{ x }}") == "aaaa"


def test_the_process_keeps_nothing_open_and_ends_with_its_own() -> None:
    """Else a lock, a device or a pipe would stay open after the command."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pid = pool.apply(_pid_of_worker)
        if sys.platform == "linux":
            files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            assert len(files) == 3 and os.devnull in files  # and two pipes
    deadline = time.monotonic() + 10
    while _is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_there(pid)


def _pid_of_worker() -> int:
    assert written("{{ x }}") == "aaaa"
    assert worker._Worker.current is not None
    return worker._Worker.current._pid


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_batches_come_in_their_order_with_other_prompts_between() -> None:
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    batches = [[(Message("user", f"{n}-{row}"),) for row in range(300)] for n in range(5)]
    found = []
    for outcomes in render_batches(template(text), batches, prompt=True):
        found.append([each.text for each in outcomes if isinstance(each, Rendered)])
        assert written("{{ x }}") == "aaaa"
    assert found == [[turns[0].content for turns in batch] for batch in batches]


def test_threads_share_the_process() -> None:
    found: list[str] = []

    def work() -> None:
        found.append(written("{{ messages[0].content }}"))
        found.append(limit_of(LOOP))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["hello"] * 3 + ["runs for more than 0.3 s"] * 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{% for a in none %}" * 30 + "{% endfor %}" * 30, "nested blocks"),
        ("{% if none %}" * 200 + "{% endif %}" * 200, "indentation"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("{{ " + "9" * 5000 + " }}", "4300 digits"),
        ("{{ ''.__class__ }}{{ ''.__class__.mro() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_what_python_or_the_sandbox_refuses_is_a_fault_of_the_row(text: str, reason: str) -> None:
    assert written(text).startswith("the chat template refuses it: ")
    assert reason in written(text)


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
    tokenizer: PreTrainedTokenizerBase = family_named(name).tokenizer
    messages = [{"role": role, "content": content} for role, content in turns]
    ours = replace(
        template(tokenizer.get_chat_template()), variables=dict(tokenizer.special_tokens_map)
    )
    if not prompt and turns[-1][0] == "user":
        pytest.skip("a training row ends with an answer")
    found = ours.render([Message(role, content) for role, content in turns], prompt=prompt)
    try:
        theirs = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
    except TemplateError as error:
        assert found == Refused(f"the chat template refuses it: {error}")
        return
    if isinstance(found, Rendered):
        assert theirs.startswith(found.text) and (not prompt or theirs == found.text)


def test_the_limits_are_far_beyond_a_long_conversation() -> None:
    chatml = family_named("chatml").renderer()
    turns = (Message("user", "a" * 1000), Message("assistant", "b" * 1000))
    assert len(chatml.render(turns * 2500, prompt=True).text) > 5_000_000
