from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ftcli.data.example import Example, Message, Origin, RowError
from ftcli.data.tokenizing.rendering import IGNORED, Renderer
from ftcli.errors import ModelError
from tests.families import (
    FORGED,
    Family,
    byte_level,
    chat,
    family_named,
    plain,
    qwen3,
    reason_of,
    runs,
    trained_text,
    wrapped,
)

# White space that tokenizers join with the template's text around it.
AWKWARD = [
    "The leather chair.",
    "  two spaces before and after  ",
    "\n\nThe chair.",
    "\n The chair.\n",
    " \n\n\tThe chair.\n\n\n",
    "'s chair",
    "Stühle 椅子 🪑",
    "<b>The</b> [INST chair |> <|",
]


def plain_text(text: str) -> Example:
    return Example((), Origin("shop.txt", 1), text)


# Masks


@pytest.mark.fault(12)
@pytest.mark.parametrize("answer", AWKWARD)
@pytest.mark.parametrize("question", AWKWARD[:5])
def test_the_answer_and_its_stop_token_are_trained_on(
    family: Family, question: str, answer: str
) -> None:
    row = family.renderer().encode(chat(question, answer))
    assert trained_text(family.tokenizer, row) == family.trained(answer)
    assert row.labels[row.prompt_tokens :] == row.input_ids[row.prompt_tokens :]
    assert set(row.labels[: row.prompt_tokens]) == {IGNORED}
    assert row.label_tokens == len(row.input_ids) - row.prompt_tokens
    assert row.input_ids[-1:] == family.ids_of(family.stop)


@pytest.mark.fault(13)
@pytest.mark.parametrize("answer", AWKWARD)
def test_the_prompt_in_use_begins_the_training_row(family: Family, answer: str) -> None:
    turns = ["Which chair?", answer, " And\n", answer]
    if family.takes_system:
        turns.insert(0, "system: Be brief.\n\n")
    for example in (chat(*turns[:-2]), chat(*turns)):
        for renderer in (family.renderer("last"), family.renderer("all")):
            if family.name == "mistral" and renderer.loss_on == "all" and len(turns) > 4:
                continue  # moves the system prompt, see below
            row = renderer.encode(example)
            prompt = renderer.prompt_ids(example.prompt)
            assert row.input_ids[: row.prompt_tokens] == prompt


def test_everything_but_the_first_token_is_trained_on(family: Family) -> None:
    example = chat("Which?", "The chair.", "Hue?", "Brown.")
    row = family.renderer("all").encode(example)
    assert row.labels == [IGNORED, *row.input_ids[1:]]
    assert row.input_ids == family.renderer("answer").encode(example).input_ids


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen3", "mistral"])
def test_a_system_prompt_is_given_and_not_trained_on(name: str) -> None:
    family = family_named(name)
    row = family.renderer().encode(chat("system:  Be brief. ", "Which?", "The chair."))
    prompt = family.tokenizer.decode(row.input_ids[: row.prompt_tokens])
    assert "Be brief." in prompt and "helpful" not in prompt
    assert trained_text(family.tokenizer, row) == family.trained("The chair.")


@pytest.mark.fault(13)
def test_a_default_system_prompt_is_in_training_and_in_use() -> None:
    renderer = family_named("chatml").renderer()
    example = chat("Which?", "The chair.")
    row = renderer.encode(example)
    prompt = renderer.prompt_ids(example.prompt)
    assert renderer.tokenizer.decode(prompt).count("You are a helpful assistant.") == 1
    assert row.input_ids[: row.prompt_tokens] == prompt


def test_ids_are_those_of_the_text_rendered_and_encoded_whole(family: Family) -> None:
    """As in vLLM and transformers; here for a text without tokens across its seams."""
    example = chat("Which chair?\n\n", "The leather chair.", "And the\n", "brown one")
    messages = [{"role": m.role, "content": m.content} for m in example.messages]
    whole = family.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, **dict(family.kwargs)
    )
    row = family.renderer().encode(example)
    assert row.input_ids == whole[: len(row.input_ids)]
    assert family.tokenizer.decode(whole[len(row.input_ids) :]).strip() == ""


# Thinking blocks


def test_an_empty_thinking_block_is_written_by_the_model_unless_the_prompt_has_it() -> None:
    thinking, not_thinking = qwen3(thinking=True), family_named("qwen3")
    example = chat("Which?", "The chair.")
    block = "<think>\n\n</think>\n\n"
    written = thinking.renderer().encode(example)
    given = not_thinking.renderer().encode(example)
    assert written.input_ids == given.input_ids
    assert trained_text(thinking.tokenizer, written) == block + "The chair.<|im_end|>"
    assert trained_text(thinking.tokenizer, given) == "The chair.<|im_end|>"


def test_thoughts_of_the_last_answer_are_trained_on_and_of_earlier_ones_left_out() -> None:
    family = qwen3(thinking=True)
    thought = "<think>\nIt is brown.\n</think>\n\n"
    row = family.renderer().encode(chat("Which?", thought + "Chair.", "Hue?", thought + "Brown."))
    assert trained_text(family.tokenizer, row) == f"Chair.<|im_end|>{thought}Brown.<|im_end|>"
    assert [row.input_ids.count(id_) for id_ in family.ids_of("<think>", "</think>")] == [1, 1]


def test_thoughts_that_the_prompt_rules_out_are_refused() -> None:
    answer = "<think>\nIt is brown.\n</think>\n\nChair."
    reason = reason_of(family_named("qwen3").renderer(), chat("Which?", answer))
    assert "differently in training and in use" in reason


def test_thinking_tokens_are_text_where_the_user_writes_them() -> None:
    family = family_named("qwen3")
    row = family.renderer().encode(chat("What is <think>?", "A tag: <think>, not <|im_end|>"))
    given, written = row.input_ids[: row.prompt_tokens], row.input_ids[row.prompt_tokens :]
    think, end, stop = family.ids_of("<think>", "</think>", "<|im_end|>")
    assert given.count(think) == given.count(end) == 1  # the empty block
    assert "What is <think>?" in family.tokenizer.decode(given)
    assert written.count(think) == written.count(stop) == 1
    assert trained_text(family.tokenizer, row) == "A tag: <think>, not <|im_end|><|im_end|>"


# Templates


@pytest.mark.parametrize(
    ("name", "turns", "reason"),
    [
        ("gemma", ("system: Be brief.", "Which?", "Chair."), "System role not supported"),
        ("mistral", ("system: a", "", "b"), "must alternate"),
    ],
)
def test_what_a_template_refuses_is_a_fault_of_the_row(
    name: str, turns: tuple[str, ...], reason: str
) -> None:
    example = chat(*turns)
    if name == "mistral":
        user = Message("user", "Which?")
        example = Example((user, user, Message("assistant", "Chair.")), example.origin)
    found = reason_of(family_named(name).renderer(), example)
    assert found.startswith("the chat template refuses it: ") and reason in found


@pytest.mark.parametrize(
    "template",
    [
        "{{ nothing.there }}",
        "{{ 1 + 'a' }}",
        "{{ messages( }}",
        "{{ 1 / 0 }}",
        "{{ 'a'.format_map }}{{ ''.__class__.__mro__[1] }}",
        "{{ range(10 ** 6) | list }}",
    ],
)
def test_a_broken_template_is_a_fault_of_the_row(template: str) -> None:
    tokenizer = wrapped(byte_level(("</s>",)), "chatml", bos=None, eos="</s>")
    tokenizer.chat_template = template
    assert reason_of(Renderer(tokenizer), chat("a", "b")).startswith("the chat template refuses it")
    with pytest.raises(RowError):
        Renderer(tokenizer).prompt_ids([Message("user", "a")])


def test_a_template_that_moves_the_system_prompt_trains_on_the_last_answer_only() -> None:
    """Mistral v0.3 puts it into the last user turn, so that earlier prompts differ in use."""
    family = family_named("mistral")
    example = chat("system: Be </s> brief.", "Which?", "The chair.", "Hue?", "Brown.")
    row = family.renderer("last").encode(example)
    assert trained_text(family.tokenizer, row) == " Brown.</s>"
    prompt = family.tokenizer.decode(row.input_ids[: row.prompt_tokens])
    assert prompt.endswith("[INST] Be </s> brief.\n\nHue? [/INST]")
    assert family.renderer("last").prompt_ids(example.prompt) == row.input_ids[: row.prompt_tokens]
    assert "differently in training and in use" in reason_of(family.renderer(), example)


def test_an_answer_that_a_template_rewrites_is_refused() -> None:
    tokenizer = wrapped(byte_level(("</s>",)), "chatml", bos=None, eos="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content if loop.first else m.content | length }}{% endfor %}"
    )
    assert "rewrites this answer" in reason_of(Renderer(tokenizer), chat("a", "b"))


def test_a_template_without_control_tokens_gets_an_end_of_text() -> None:
    family = plain()
    renderer = family.renderer()
    example = chat("Which chair?", "the leather chair.\n", "Hue?", "the brown one.\n\n")
    row = renderer.encode(example)
    prompt = "USER: Which chair?\n\nASSISTANT: the leather chair.\n\n\nUSER: Hue?\n\nASSISTANT: "
    assert family.tokenizer.decode(row.input_ids) == f"{prompt}the brown one.\n\n<|endoftext|>"
    assert row.input_ids[: row.prompt_tokens] == renderer.prompt_ids(example.prompt)
    first, last = (family.tokenizer.decode(run) for run in runs(row))
    assert last == "the brown one.\n\n<|endoftext|>"
    # Nothing of the next turn; the first word shares a token with the space of its prompt.
    assert first.strip() == "leather chair."


def test_a_border_within_white_space_is_kept_where_the_prompt_has_it() -> None:
    """GPT-2 keeps "\\n\\n" together at a text's end only; no token of the answer is lost."""
    tokenizer = wrapped(byte_level(("</s>",), gpt2=True), "chatml", bos=None, eos="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':\n\n' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n\n' }}{% endif %}"
    )
    example = chat("the answer", "the answer", "the", "the end")
    row = Renderer(tokenizer).encode(example)
    assert trained_text(tokenizer, row) == "the answer</s>the end</s>"
    assert row.input_ids[: row.prompt_tokens] == Renderer(tokenizer).prompt_ids(example.prompt)


def test_a_conversation_without_a_template_is_a_fault_of_the_row() -> None:
    tokenizer = wrapped(byte_level(("</s>",)), "chatml", bos=None, eos="</s>")
    tokenizer.chat_template = None
    assert "no chat template" in reason_of(Renderer(tokenizer), chat("a", "b"))
    assert Renderer(tokenizer).stop_ids == (tokenizer.eos_token_id,)


def test_a_template_that_asks_for_a_system_turn_has_its_own_stop_token() -> None:
    family = family_named("chatml")
    tokenizer = wrapped(byte_level(family.controls), "chatml", bos=None, eos="<|endoftext|>")
    both = Renderer(tokenizer).stop_ids
    assert both == tuple(family.ids_of("<|im_end|>", "<|endoftext|>"))
    asks = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = asks + tokenizer.chat_template
    assert Renderer(tokenizer).stop_ids == both
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert Renderer(tokenizer).stop_ids == both[1:]


def test_stop_ids_are_the_templates_own_and_the_end_of_text(family: Family) -> None:
    expected = dict.fromkeys([*family.ids_of(family.stop), family.tokenizer.eos_token_id])
    for loss_on in ("completions", "last", "all"):
        assert family.renderer(loss_on).stop_ids == tuple(expected)


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(("<|im_end|>",)))
    with pytest.raises(ModelError, match="no end-of-text token"):
        Renderer(tokenizer).encode(plain_text("the answer"))


# Plain text


@pytest.mark.fault(14)
@pytest.mark.parametrize("before", ["", "<|begin_of_text|>", "<|begin_of_text|>" * 3])
@pytest.mark.parametrize("after", ["", "<|eot_id|>", "<|eot_id|>\n", "<|eot_id|>" * 2])
def test_a_text_has_one_beginning_and_one_end(before: str, after: str) -> None:
    tokenizer = family_named("llama3").tokenizer
    row = Renderer(tokenizer).encode(plain_text(f"{before}the answer{after}"))
    assert tokenizer.decode(row.input_ids) == "<|begin_of_text|>the answer<|eot_id|>"
    assert row.labels == [IGNORED, *row.input_ids[1:]]
    assert row.prompt_tokens == 0


def test_a_text_keeps_its_white_space_and_gets_no_beginning_that_its_model_lacks() -> None:
    family = family_named("chatml")
    row = family.renderer().encode(plain_text(" the answer\n\n"))
    assert family.tokenizer.decode(row.input_ids) == " the answer\n\n<|im_end|>"


# The real small model


@pytest.mark.fault(12)
@pytest.mark.slow
def test_the_small_models_rows(small_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    renderer = Renderer(tokenizer)
    for answer in [*AWKWARD, FORGED]:
        example = chat("Which <|im_end|> chair?\n", answer, FORGED, answer)
        row = renderer.encode(example)
        first, last = (tokenizer.decode(run) for run in runs(row))
        assert last == f"{answer}<|im_end|>"
        assert last.endswith(first) and first.strip() == last.strip()
        assert row.input_ids[: row.prompt_tokens] == renderer.prompt_ids(example.prompt)
        assert row.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 5
    assert renderer.stop_ids == (tokenizer.eos_token_id,)
