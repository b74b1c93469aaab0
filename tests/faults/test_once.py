"""One BOS and one EOS, whatever a tokenizer adds and a text contains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import processors
from transformers import AddedToken

from ftcli.data.example import Example, Origin
from ftcli.data.tokenizing.rendering import Renderer
from tests.families import BUILDERS, Family, chat, count_controls, runs

CONVERSATIONS = (
    ("Which?", "The chair."),
    ("Which?", "The chair.", "Hue?", "Brown."),
)


def adding(family: Family, *, begin: bool, end: bool) -> Any:
    """The family's tokenizer, putting its own tokens around whatever it encodes."""
    tokenizer = family.tokenizer
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": AddedToken("<|begins|>", special=True)})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in around(tokenizer)}
    first, last = around(tokenizer)
    single = f"{f'{first} ' if begin else ''}$A{f' {last}' if end else ''}"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=list(ids.items())
    )
    encoded = tokenizer("the answer").input_ids
    assert (encoded[0] == ids[first], encoded[-1] == ids[last]) == (begin, end)
    return tokenizer


def around(tokenizer: Any) -> tuple[str, str]:
    return tokenizer.bos_token, tokenizer.eos_token


@pytest.mark.fault(14)
@pytest.mark.parametrize("name", BUILDERS)
def test_what_a_tokenizer_adds_is_there_once(name: str, observed: Callable[[str], None]) -> None:
    rows = []
    for begin, end in ((False, False), (True, False), (False, True), (True, True)):
        family = BUILDERS[name]()
        tokenizer = adding(family, begin=begin, end=end)
        renderer = family.renderer()
        writes_bos = tokenizer.bos_token in str(tokenizer.chat_template) or "bos_token" in str(
            tokenizer.chat_template
        )
        for turns in CONVERSATIONS:
            row = renderer.encode(chat(*turns))
            ids = row.input_ids
            assert ids.count(tokenizer.bos_token_id) == int(writes_bos)
            assert ids[-1:] == family.ids_of(family.stop) and ids[-2:] != ids[-1:] * 2
            for answer in runs(row):
                assert answer.count(ids[-1]) == 1 and answer[-1] == ids[-1]
            assert renderer.prompt_ids(chat(*turns).prompt) == ids[: row.prompt_tokens]
            rows.append(ids)
    assert rows == rows[:2] * 4, "and nothing depends on what the tokenizer adds"
    observed(f"{name}: one of each in {len(rows)} rows")


@pytest.mark.fault(14)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_text_that_was_rendered_already_gets_no_second_pair(
    name: str, observed: Callable[[str], None]
) -> None:
    seen = 0
    for begin, end in ((False, False), (True, True)):
        family = BUILDERS[name]()
        tokenizer = adding(family, begin=begin, end=end)
        first, last = around(tokenizer)
        for text in (
            "the answer",
            f"{first}the answer",
            f"the answer{last}",
            f"{first}the answer{last}",
        ):
            row = Renderer(tokenizer).encode(Example((), Origin("shop.txt", 1), text))
            assert row.input_ids.count(tokenizer.eos_token_id) == 1
            assert row.input_ids[-1] == tokenizer.eos_token_id
            assert row.input_ids.count(tokenizer.bos_token_id) == int(begin or first in text)
            seen += 1
    observed(f"{name}: one of each in {seen} plain texts")


@pytest.mark.fault(14)
@pytest.mark.parametrize("name", BUILDERS)
def test_contents_that_carry_a_template_add_no_control_token(
    name: str, observed: Callable[[str], None]
) -> None:
    """A whole rendered conversation as a user's text, as in rows rendered earlier."""
    family = BUILDERS[name]()
    messages = [
        {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "The chair."},
    ]
    rendered = family.tokenizer.apply_chat_template(messages, tokenize=False, **dict(family.kwargs))
    assert any(control in rendered for control in family.controls)
    for turns in ((rendered, "The chair."), ("Which?", rendered), (rendered, rendered)):
        row = family.renderer().encode(chat(*turns))
        bare = family.renderer().encode(chat("Which?", "The chair."))
        assert count_controls(family, row.input_ids) == count_controls(family, bare.input_ids)
    observed(f"{name}: control tokens written in a content are text")
