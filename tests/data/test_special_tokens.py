"""Control tokens in contents are text."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftcli.data.tokenizing.rendering import Renderer
from tests.families import (
    FORGED,
    chat,
    family_named,
    llama3,
    qwen3,
    reason_of,
    sentencepiece_like,
    trained_text,
    wrapped,
)


def test_nothing_changes_around_a_forged_control_token() -> None:
    """Tokenizers split at added tokens first: ids between the template's own are the oracle."""
    family = family_named("chatml")
    state = json.loads(family.tokenizer.backend_tokenizer.to_str()) | {"added_tokens": []}
    bare = Tokenizer.from_str(json.dumps(state))
    start, stop = family.ids_of("<|im_start|>", "<|im_end|>")

    def turn(role: str, content: str) -> list[int]:
        return [start, *bare.encode(f"{role}\n{content}").ids, stop]

    line = bare.encode("\n").ids
    row = family.renderer().encode(chat("system: \n" + FORGED, FORGED + "\n", "the " + FORGED))
    assert row.input_ids == [
        *turn("system", "\n" + FORGED),
        *line,
        *turn("user", FORGED + "\n"),
        *line,
        *turn("assistant", "the " + FORGED),
    ]


@pytest.mark.parametrize("legacy", [False, True])
def test_control_tokens_are_spelled_by_tokenizers_that_begin_a_text_with_a_space(
    legacy: bool,
) -> None:
    """Llama 2's tokenizer puts a space before a text: the legacy one after every control token."""
    tokenizer = sentencepiece_like(("<s>", "</s>", "<|user|>", "<|assistant|>"))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.pre_tokenizer = None
    fast = wrapped(tokenizer, "mistral", bos="<s>", eos="</s>")
    fast.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    answers = ("the answer </s>the", "\nthe answer", "\nthe </s> answer")
    example = chat("the <|user|> ends </s>", answers[0], "</s>", answers[1], "the", answers[2])
    row = Renderer(fast).encode(example)
    space = " " if legacy else ""
    assert trained_text(fast, row) == "".join(f"{space}{answer}</s>" for answer in answers)
    assert row.input_ids.count(fast.eos_token_id) == 6
    assert row.input_ids[: row.prompt_tokens] == Renderer(fast).prompt_ids(example.prompt)


def test_a_control_token_that_cannot_be_spelled_is_refused() -> None:
    words = {"<unk>": 0, "<end>": 1, "the": 2, "answer": 3, "xxxxx": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = "{% for m in messages %}{{ m.content + ' <end> ' }}{% endfor %}"
    renderer = Renderer(fast)
    assert renderer.encode(chat("the", "answer")).input_ids == [2, 1, 3, 1]
    assert "cannot encode" in reason_of(renderer, chat("the <end>", "answer"))


def test_characters_that_stand_for_control_tokens_cannot_be_smuggled_in() -> None:
    renderer = family_named("chatml").renderer()
    smuggled = "".join(chr(0xF0000 + number) * 10 for number in range(4))
    row = renderer.encode(chat(smuggled, "The chair."))
    assert smuggled in renderer.tokenizer.decode(row.input_ids)
    assert "cannot encode" in reason_of(renderer, chat(smuggled + "<|im_end|>", "The chair."))


def test_a_control_token_in_a_content_that_is_rewritten_is_refused() -> None:
    answer = "<think>\nIt is <|im_end|>.\n</think>\n\nChair."
    reason = reason_of(qwen3(thinking=True).renderer(), chat("Which?", answer))
    assert "control token in a content that the chat template rewrites" in reason


def test_a_length_limit_in_the_tokenizer_cuts_no_row() -> None:
    family = llama3()
    family.tokenizer.backend_tokenizer.enable_truncation(8)
    family.tokenizer.backend_tokenizer.enable_padding(length=500)
    for question in ("the answer " * 20, "the answer <|eot_id|>" * 20):
        row = family.renderer().encode(chat(question, "The chair."))
        assert 20 < len(row.input_ids) < 500
        assert question.strip() in family.tokenizer.decode(row.input_ids)
