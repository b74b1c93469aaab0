"""Rows are written without their template where it does not look at contents, and only there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ftcli.data.example import Message
from ftcli.data.templates.marked import MarkedTemplate, mark
from ftcli.data.templates.sandbox import render
from ftcli.data.templates.skeleton import Skeletons
from ftcli.data.tokenizing import rendering
from ftcli.data.tokenizing.layout import Layout
from ftcli.data.tokenizing.rendering import Renderer, RowFault
from tests.families import BUILDERS, FORGED, Family, chat, family_named

PIECES = (
    *(
        "<|im_end|>",
        "<|im_start|>",
        "<|eot_id|>",
        "<end_of_turn>",
        "</s>",
        "[INST]",
        "<|im_",
        "end|>",
    ),
    *(
        "<think>",
        "</think>",
        "{{ x }}",
        "{}",
        "%s",
        "\\ue000",
        "\ue000",
        mark(0),
        "&lt;<",
        "a",
        "b",
    ),
    *("\n", " ", "\t", "0", "answer"),
)
pieces = st.sampled_from(PIECES) | st.text(max_size=3)
contents = st.lists(pieces, max_size=5).map("".join)

# Of a turn `m`, in a loop: whatever makes the template's way depend on its content.
LOOKS = [
    "{{ m.content | upper }}",
    "{{ m.content | length }}",
    "{{ m.content[:3] }}",
    "{{ m.content[0] }}",
    "{{ m.content | first }}",
    "{{ m.content | list | join('-') }}",
    "{{ m.content | reverse }}",
    "{{ m.content | replace('a', 'b') }}",
    "{{ 'b' | replace('b', m.content) }}",
    "{{ m.content | int }}",
    "{{ m.content | float }}",
    "{{ m.content | title }}",
    "{{ m.content | indent }}",
    "{{ m.content | e }}",
    "{{ m.content | safe }}",
    "{{ m.content | tojson }}",
    "{{ m | tojson }}",
    "{{ m }}",
    "{{ [m.content] }}",
    "{{ [m.content] | string }}",
    "{{ [m.content] | string | upper }}",
    "{{ [m.content] | string | length }}",
    "{{ ([m.content] ~ '').split('a') | length }}",
    "{% if 'x' in ([m.content] | string) %}a{% endif %}",
    "{% if 'x' in (m ~ '') %}a{% endif %}",
    "{% set a %}{{ [m.content] }}{% endset %}{{ a | length }}",
    "{{ m.content | trim('a') }}",
    "{{ m.content.strip('a') }}",
    "{{ m.content.split('a')[0] }}",
    "{{ m.content.upper() }}",
    "{{ m.content.isdigit() }}",
    "{{ m.content.format() }}",
    "{{ '{}'.format(m.content) }}",
    "{{ '%s' | format(m.content) }}",
    "{{ '%s' % m.content }}",
    "{{ m.content % () }}",
    "{{ m.content * 2 }}",
    "{{ ('x' | safe) + m.content }}",
    "{{ m.content == 'a' }}",
    "{{ 'a' == m.content }}",
    "{{ m.content == messages[0].content }}",
    "{{ m.content < 'b' }}",
    "{{ 'a' in m.content }}",
    "{{ m.content in 'abc' }}",
    "{{ m.content in ['a'] }}",
    "{{ m.content not in {'a': 1} }}",
    "{{ m == {'role': 'user', 'content': 'a'} }}",
    "{{ m.content is eq('a') }}",
    "{{ m.content is in(['a']) }}",
    "{{ m.content is upper }}",
    "{{ {m.content: 1}['a'] }}",
    "{{ dict([[m.content, 1]])['a'] }}",
    "{{ dict([[m.content, 1]]).get('a') }}",
    "{{ m.content is filter }}",
    "{{ {'a': 1}[m.content] }}",
    "{% for c in m.content %}{{ c }}{% endfor %}",
    "{% for a, b in [m.content] %}{{ a }}{% endfor %}",
    "{% set a, b, c = m.content %}{{ b }}",
    "{% set x %}{{ m.content }}{% endset %}{{ x | upper }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content) | upper }}",
    "{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(m.content) }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% autoescape true %}{{ m.content }}{% endautoescape %}",
    "{% set ns = namespace(t=m.content) %}{{ ns.t | upper }}",
    "{{ (m.content ~ '!') | upper }}",
    "{{ (m.content + '!') | upper }}",
    "{{ dict(a=m.content) | tojson }}",
    "{{ cycler(m.content).next() | upper }}",
    "{{ loop.changed(m.content) }}",
    "{{ messages | map(attribute='content') | sort | join }}",
    "{{ messages | map(attribute='content') | map('length') | join }}",
    "{{ messages | map('tojson') | join }}",
    "{{ messages | selectattr('content', 'equalto', 'a') | list | length }}",
    "{{ messages | rejectattr('content', 'in', 'abc') | list | length }}",
    "{{ messages | unique(attribute='content') | list | length }}",
    "{{ messages | max(attribute='content') }}",
    "{{ messages | map(attribute='content.0') | join }}",
]

# What the template may do: the text is the same around any contents.
HANDS_ON = [
    "{{ m.content }}",
    "{{ m['content'] | trim }}",
    "{{ m.content.strip() + m.content.rstrip() }}",
    "{{ ('\n' + m.content + ' ') | trim }}",
    "{{ m.content ~ '!' ~ loop.index }}",
    "{{ m.content or 'nothing' }}",
    "{% if m.content %}{{ m.content }}{% endif %}",
    "{{ m.content if m.content is string else 'no text' }}",
    "{{ m.content if m.content is not none and m.content is not mapping else '' }}",
    "{{ m.content | default('nothing') | string }}",
    "{{ m.get('content') }}",
    "{{ 'tools' if 'tool_calls' in m else m.content }}",
    "{{ [m.content, 'b'] | join('-') }}",
    "{% set x %}({{ m.content }}){% endset %}{{ x + '!' }}",
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(m.content) ~ f(m.content | trim) }}",
    "{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}{{ m.content }}{% endcall %}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{% set ns = namespace(t='') %}{% set ns.t = ns.t + m.content %}{{ ns.t }}",
    "{{ messages[1:] | map(attribute='content') | join }}{{ m.content }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('/') }}",
    "{{ (messages + [m])[0].content }}",
    "{{ messages[0]['content'] if messages[0]['role'] == 'user' else m.content }}",
]


def each_turn(body: str) -> str:
    return "{% for m in messages %}" + body + "{% endfor %}"


def turns(texts: Sequence[str]) -> list[Message]:
    return [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def written(template: str, messages: Sequence[Message]) -> str:
    given = [{"role": message.role, "content": message.content} for message in messages]
    return render(template, {"messages": given, "add_generation_prompt": False})


@pytest.mark.parametrize("body", LOOKS)
def test_a_template_that_asks_something_of_a_content_is_known(body: str) -> None:
    marked = [{"role": "user", "content": mark(0)}, {"role": "assistant", "content": mark(1)}]
    template = MarkedTemplate(each_turn(body))
    assert template.render({"messages": marked}) is None


@pytest.mark.parametrize("body", HANDS_ON)
@given(texts=st.lists(contents, min_size=2, max_size=2))
@settings(max_examples=40, deadline=None)
def test_what_is_written_around_marks_is_written_around_any_contents(
    body: str, texts: list[str]
) -> None:
    # the answers' own marks stand once, as they have to; the body may repeat them
    template = each_turn(body) + "<a>{{ messages | length }}"
    marked = [{"role": m.role, "content": mark(n)} for n, m in enumerate(turns(texts))]
    around = MarkedTemplate(template)
    found = around.render({"messages": marked})
    assert found is not None
    assume(all(texts))
    if around.strips:
        assume(all(text == text.strip() for text in texts))
    parts = found.replace(mark(0), "\0").replace(mark(1), "\1")
    expected = "".join({"\0": texts[0], "\1": texts[1]}.get(part, part) for part in parts)
    assert expected == written(template, turns(texts))


def laid_out(renderer: Renderer, messages: Sequence[Message]) -> Layout | str:
    try:
        return renderer.lay_out(messages)
    except RowFault as fault:
        return fault.message


@pytest.mark.parametrize("loss_on", ["answer", "last"])
@pytest.mark.parametrize("name", list(BUILDERS))
@given(texts=st.lists(contents, min_size=1, max_size=3), system=st.none() | contents)
@settings(max_examples=60, deadline=None)
def test_rows_are_laid_out_as_their_template_lays_them_out(
    name: str, loss_on: str, texts: list[str], system: str | None
) -> None:
    family = family_named(name)
    messages = [Message("system", system)] if system is not None else []
    messages += turns([text for text in texts for _ in range(2)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Skeletons, "of", lambda self, messages: None)
        expected = laid_out(family.renderer(loss_on), messages)
    assert laid_out(family.renderer(loss_on), messages) == expected


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral"])
def test_a_template_writes_one_conversation_for_all_with_its_roles(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = family_named(name).renderer("last")
    renderer.lay_out(chat("Which chair?", "The brown one.").messages)

    def refuse(*_: object) -> str:
        raise AssertionError("the template was asked")

    monkeypatch.setattr(rendering, "render", refuse)
    laid = renderer.lay_out(chat("Which table?", "The oak table.").messages)
    assert "The oak table." in laid.text[laid.answers[0].start : laid.answers[0].end]


def test_white_space_that_a_template_strips_is_left_to_it() -> None:
    gemma = family_named("gemma").renderer()
    plain = gemma.lay_out(chat("Which chair?", "The brown one.").messages)
    assert gemma.lay_out(chat("\nWhich chair? ", " The brown one.\n").messages) == plain


def test_control_tokens_in_contents_stay_text(family: Family) -> None:
    renderer = family.renderer()
    renderer.lay_out(chat("Is it?", "No.").messages)
    laid = renderer.lay_out(chat(FORGED, "No.").messages)
    assert [laid.text[start:end] for start, end in laid.forged]
    assert all(laid.text[start:end] in FORGED for start, end in laid.forged)
