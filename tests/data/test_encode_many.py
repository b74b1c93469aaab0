"""Rows encoded in batches equal rows encoded one by one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from ftcli.data.example import Example, RejectedRow, RowError
from ftcli.data.tokenizing import rendering
from ftcli.data.tokenizing.rendering import Encoded, Renderer, encode_items
from tests.families import (
    CONTENTS,
    CORPUS,
    FORGED,
    Family,
    chat,
    encode_many,
    family_named,
    plain,
    qwen3,
    wrapped,
)
from tests.tiers import tiers


def one_by_one(renderer: Renderer, examples: list[Example]) -> list[Encoded | str]:
    rows = [rendering._or_error(partial(renderer.encode, example)) for example in examples]
    return [row.message if isinstance(row, RowError) else row for row in rows]


def word_level(name: str, turn: str) -> Family:
    """A tokenizer with one token for all unknown words: equal ids do not mean equal texts."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<|end|>"], show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    fast = wrapped(tokenizer, "plain", bos=None, eos="<|end|>")
    header, footer = turn.split("…")
    fast.chat_template = (
        "{% for m in messages %}{% set header = m.role + ':' %}" + header + "{{ m.content }}"
        "" + footer + "{% endfor %}{% if add_generation_prompt %}{% set header = 'assistant:' %}"
        "" + header + "{% endif %}"
    )
    return Family(name, fast, str, "<|end|>", ("<|end|>",))


NAMED = ("chatml", "llama3", "qwen3", "gemma", "mistral")
FAMILIES = {
    **{name: family_named(name) for name in NAMED},
    "plain": plain(),
    "qwen3 thinking": qwen3(thinking=True),
    "word level": word_level("word level", "{{ header }}…\n"),
    "word level after control": word_level("after control", "{{ header }}…<|end|>"),
}
conversation = st.lists(CONTENTS, min_size=2, max_size=6).map(lambda turns: turns[len(turns) % 2 :])
system = st.none() | CONTENTS
texts = st.builds(lambda text: Example((), chat("a").origin, text=text), CONTENTS)


@pytest.mark.parametrize("name", tiers(FAMILIES, "chatml", "gemma", "word level"))
@given(
    rows=st.lists(st.tuples(system, conversation), max_size=4),
    plain_texts=st.lists(texts, max_size=2),
    loss_on=st.sampled_from(["completions", "last", "all"]),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_one_by_one(
    name: str,
    rows: list[tuple[str | None, list[str]]],
    plain_texts: list[Example],
    loss_on: str,
) -> None:
    examples = [
        chat(*([f"system: {system}"] if system is not None else []), *turns)
        for system, turns in rows
    ]
    examples += plain_texts
    alone = one_by_one(FAMILIES[name].renderer(loss_on), examples)
    assert encode_many(FAMILIES[name].renderer(loss_on), examples) == alone


@pytest.mark.parametrize("name", NAMED)
def test_prompts_are_not_encoded_again_after_a_control_token(name: str) -> None:
    renderer = FAMILIES[name].renderer()
    rendered = renderer.render(chat("Which?", "The chair.").messages)
    border, escaping = rendered.answers[-1].start, renderer.escaping
    (whole,) = escaping.encodings([rendered.text])
    prompt_tokens = len(escaping.tokens(rendered.prompt))
    assert escaping.tokens_before(border, rendered.text, whole) == prompt_tokens


def test_a_tokens_way_into_the_answer_is_seen() -> None:
    """Line feeds of prompt and answer are one token together, and two apart."""
    renderer = FAMILIES["chatml"].renderer()
    rendered = renderer.render(chat("Which?", "\nThe chair.").messages)
    border, escaping = rendered.answers[-1].start, renderer.escaping
    (whole,) = escaping.encodings([rendered.text])
    assert whole.token_to_chars(whole.char_to_token(border - 1))[1] > border
    assert escaping.tokens_before(border, rendered.text, whole) is None


def test_an_answer_is_not_taken_for_what_the_template_writes_before_it() -> None:
    """An empty thinking block comes first, and begins as the second answer does."""
    examples = [chat("Which?", "The chair."), chat("Which?", "<")]
    rows = encode_many(FAMILIES["qwen3 thinking"].renderer(), examples)
    fresh = [FAMILIES["qwen3 thinking"].renderer().encode(example) for example in examples]
    assert rows == fresh
    assert "</think>" in FAMILIES["qwen3"].tokenizer.decode(fresh[1].input_ids)


def test_a_template_with_users_words_before_the_answer_fills_no_memory() -> None:
    chatml = FAMILIES["chatml"]
    renderer = replace(chatml.renderer(), tokenizer=family_with("<|im_start|>{{ m.content }}\n"))
    examples = [chat(f"{number}", "a") for number in range(300)]
    rows = encode_many(renderer, examples)
    assert rows == one_by_one(renderer, examples)
    assert 0 < len(renderer.escaping._tails) < len(examples)


def family_with(turn: str) -> object:
    fast = wrapped(
        Tokenizer.from_str(FAMILIES["chatml"].tokenizer.backend_tokenizer.to_str()),
        "chatml",
        bos=None,
        eos="<|im_end|>",
    )
    fast.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}" + turn + "{% else %}"
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    return fast


def test_rows_that_cannot_be_rendered_stand_in_their_place() -> None:
    family = FAMILIES["gemma"]
    bad = chat("system: Be brief.", "Which?", "The chair.")
    good, forged = chat("Which?", "The chair."), chat(FORGED, "The chair.")
    unread = RejectedRow(bad.origin, "not JSON")
    items = [(good, "train"), unread, (bad, "test"), (forged, "validation"), (good, "test")]
    found = list(encode_items(iter(items), family.renderer()))
    assert [item if isinstance(item, RejectedRow) else item[:2] for item in found] == [
        (good, "train"),
        unread,
        RejectedRow(bad.origin, "the chat template refuses it: System role not supported"),
        (forged, "validation"),
        (good, "test"),
    ]


def test_batches_hold_little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "CHARACTERS_PER_BATCH", 10)
    long, short = chat("a" * 20, "b"), chat("a", "b")
    batches = rendering._batches((row, "train") for row in [short, short, long, long, short])
    assert [len(batch) for batch in batches] == [3, 1, 1]
    monkeypatch.setattr(rendering, "ROWS_PER_BATCH", 2)
    batches = rendering._batches((row, "train") for row in [short] * 5)
    assert [len(batch) for batch in batches] == [2, 2, 1]
