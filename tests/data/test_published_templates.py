"""Templates of today's model families: exactly the answers and their ends are trained on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo

import pytest
from test_rendering import AWKWARD
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from ftcli.data.example import Example, Message
from ftcli.data.templates.render import ChatTemplate, Rendered
from ftcli.data.tokenizing.answer_text import AnswerReader
from ftcli.data.tokenizing.rendering import Renderer
from tests.families import byte_level, chat, encode_many, reason_of, runs
from tests.published import tokenizer_named

THINKING, ANSWERING = (("enable_thinking", True),), (("enable_thinking", False),)
Kwargs = tuple[tuple[str, str | bool | int | float], ...]


@dataclass(frozen=True)
class Published:
    """What is trained on in a template's answers: `before` the content, and their end."""

    stop: str
    before: str = ""
    earlier: tuple[str, str] | None = None
    """(before, end) of earlier answers, if others."""
    kwargs: Kwargs = ()
    takes_system: bool = True

    def trained(self, *answers: str) -> list[str]:
        before, stop = (self.before, self.stop) if self.earlier is None else self.earlier
        *earlier, last = answers
        return [before + answer + stop for answer in earlier] + [self.before + last + self.stop]


IM_END, EOT = "<|im_end|>", "<|eot_id|>"
SENTENCE = "<｜end▁of▁sentence｜>"
EMPTY, CLOSED = "<think>\n\n</think>\n\n", "\n</think>\n\n"
FINAL = "<|channel|>final<|message|>"
BLOCK = "\n<think></think>\n"

PUBLISHED = {
    "cohere": Published("<|END_OF_TURN_TOKEN|>"),
    "cohere2": Published("<|END_RESPONSE|>"),
    "deepseek31": Published(SENTENCE),
    "deepseek_r1_distill": Published(SENTENCE, CLOSED, ("", SENTENCE)),
    "deepseekv3": Published(SENTENCE, CLOSED, ("", SENTENCE)),
    "gemma": Published("<end_of_turn>", takes_system=False),
    "gemma3": Published("<end_of_turn>"),
    "gemma4": Published("<turn|>"),
    "gemma4_large": Published("<turn|>"),
    "gemma4_large thinking": Published("<turn|>", kwargs=THINKING),
    "gemma4_v5": Published("<turn|>"),
    # It ends a turn with the next one; the tokenizer's end of text is the last answer's.
    "glm4moe": Published("<eos>", BLOCK, (BLOCK, "")),
    "glm4moe answering": Published("<eos>", "\n", ("\n", ""), ANSWERING),
    "gptoss": Published("<|return|>", FINAL, (FINAL, "")),
    "granite4": Published("<|end_of_text|>"),
    "idefics3": Published("<end_of_utterance>", " "),
    "kimi2": Published(IM_END),
    "lfm2": Published(IM_END),
    "lfm2_2_5": Published(IM_END),
    "llama3": Published(EOT),
    "llama3_2": Published(EOT),
    "llama4": Published("<|eot|>"),
    "llava_next": Published("</s>", " "),
    "minimax2": Published("[e~[", CLOSED, ("", "[e~[")),
    "mistral_small": Published("<eos>"),
    "nemotron_3_nano answering": Published(IM_END, kwargs=ANSWERING),
    "nemotron_3_super answering": Published(IM_END, kwargs=ANSWERING),
    "nemotron_nano2": Published("\n<SPECIAL_12>", "</think>\n\n", ("", "\n<SPECIAL_12>")),
    "olmo3": Published("<eos>", earlier=("", "")),
    "phi3": Published("<|end|>"),
    "phi4": Published(IM_END),
    "phi4_mini": Published("<|end|>"),
    "qwen2_5_vl": Published(IM_END),
    "qwen3": Published(IM_END, EMPTY, ("", IM_END)),
    "qwen3 answering": Published(IM_END, kwargs=ANSWERING),
    "qwen3_5_nothink": Published(IM_END),
    "qwen3_5_think": Published(IM_END, CLOSED, ("", IM_END)),
    "qwen3_5_think answering": Published(IM_END, kwargs=ANSWERING),
    "qwen3_6": Published(IM_END, CLOSED, ("", IM_END)),
    "qwen3_8 answering": Published(IM_END, kwargs=ANSWERING),
    "qwen3_vl": Published(IM_END),
    "smollm3": Published(IM_END),
    "smollm3 answering": Published(IM_END, kwargs=ANSWERING),
    "smolvlm": Published("<end_of_utterance>", " "),
}


def renderer_of(name: str, loss_on: str = "completions", kwargs: Kwargs = ()) -> Renderer:
    return Renderer(tokenizer_named(name.split()[0]), loss_on, kwargs)


@pytest.mark.fault(12)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_answers_and_their_ends_are_trained_on(name: str) -> None:
    published = PUBLISHED[name]
    renderer = renderer_of(name, kwargs=published.kwargs)
    decode = renderer.tokenizer.decode
    one, two = ("Which chair?", "The chair."), ("Which chair?", "The chair.", "Hue?", "Brown.")
    conversations = [one, two]
    if published.takes_system:
        conversations += [("system: Be brief.", *turns) for turns in conversations]
    for turns in conversations:
        example = chat(*turns)
        answers = [m.content for m in example.messages if m.role == "assistant"]
        row = renderer.encode(example)
        assert [decode(labels) for labels in runs(row)] == published.trained(*answers)
        prompt = renderer.prompt_ids(example.prompt)
        assert row.input_ids[: row.prompt_tokens] == prompt
        assert decode(prompt).count("Be brief.") == (turns[0] == "system: Be brief.")
        assert row.labels[-1] == row.input_ids[-1] == renderer.stop_ids[0]
        assert encode_many(renderer, [example]) == [row]
        last = renderer_of(name, "last", published.kwargs).encode(example)
        assert last.input_ids == row.input_ids
        assert decode(last.input_ids[last.prompt_tokens :]) == published.trained(answers[-1])[0]


@pytest.mark.fault(13)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_prompt_in_use_begins_the_row_whatever_it_holds(name: str) -> None:
    published = PUBLISHED[name]
    renderer = renderer_of(name, kwargs=published.kwargs)
    decode = renderer.tokenizer.decode
    for answer, question in zip(AWKWARD, reversed(AWKWARD), strict=True):
        example = chat(question, answer, question, answer)
        row = renderer.encode(example)
        prompt = renderer.prompt_ids(example.prompt)
        assert row.input_ids[: row.prompt_tokens] == prompt
        labels = runs(row)[-1]
        assert prompt + labels == row.input_ids
        assert decode(labels).removesuffix(published.stop.strip()).strip().endswith(answer.strip())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_prompt_is_what_transformers_writes(name: str) -> None:
    published = PUBLISHED[name]
    renderer = renderer_of(name, kwargs=published.kwargs)
    turns = [Message("user", "Which?"), Message("assistant", "This."), Message("user", "Hue?")]
    parts = name.split()[0] in ("idefics3", "smolvlm", "llava_next")
    given = [
        {"role": m.role, "content": [{"type": "text", "text": m.content}] if parts else m.content}
        for m in turns
    ]
    written = renderer.tokenizer.apply_chat_template(
        given, tokenize=False, add_generation_prompt=True, **dict(published.kwargs)
    )
    ours = renderer.render(turns, prompt=True).text
    date = re.compile(r"\d{4}-\d\d-\d\d|\d\d \w+ \d{4}")
    assert date.sub("", ours) == date.sub("", written)


# Thoughts

THOUGHT = "<think>\nIt is {}.\n</think>\n\n"
THOUGHTS = chat("Which?", THOUGHT.format("oak") + "Chair.", "Hue?", THOUGHT.format("red") + "Red.")


@pytest.mark.parametrize(
    ("name", "earlier", "last"),
    [
        ("deepseek_r1_distill", "\n\nChair." + SENTENCE, f"It is red.{CLOSED}Red.{SENTENCE}"),
        (
            "gemma4_large thinking",
            "Chair.<turn|>",
            "<|channel>thought\nIt is red.\n<channel|>Red.<turn|>",
        ),
        ("glm4moe", f"{BLOCK}Chair.", "\n<think>It is red.</think>\nRed.<eos>"),
        (
            "gptoss",
            f"{FINAL}Chair.",
            f"<|channel|>analysis<|message|>It is red.<|end|><|start|>assistant"
            f"{FINAL}Red.<|return|>",
        ),
        ("lfm2_2_5", f"Chair.{IM_END}", f"{THOUGHT.format('red')}Red.{IM_END}"),
        ("minimax2", "Chair.[e~[", f"It is red.{CLOSED}Red.[e~["),
        ("nemotron_3_nano", f"\n\nChair.{IM_END}", f"It is red.{CLOSED}Red.{IM_END}"),
        ("nemotron_nano2", "Chair.\n<SPECIAL_12>", f"It is red.{CLOSED}Red.\n<SPECIAL_12>"),
        ("qwen3", f"Chair.{IM_END}", f"{THOUGHT.format('red')}Red.{IM_END}"),
        ("qwen3_5_think", f"Chair.{IM_END}", f"It is red.{CLOSED}Red.{IM_END}"),
        ("qwen3_8", f"It is oak.{CLOSED}Chair.{IM_END}", f"It is red.{CLOSED}Red.{IM_END}"),
    ],
)
def test_thoughts_of_the_last_answer_are_trained_on(name: str, earlier: str, last: str) -> None:
    renderer = renderer_of(name, kwargs=THINKING if "thinking" in name else ())
    row = renderer.encode(THOUGHTS)
    assert [renderer.tokenizer.decode(labels) for labels in runs(row)] == [earlier, last]
    assert row.input_ids[: row.prompt_tokens] == renderer.prompt_ids(THOUGHTS.prompt)


@pytest.mark.parametrize(
    ("name", "example", "reason"),
    [
        ("deepseek31", THOUGHTS, "leaves out the thoughts of this answer"),
        (
            "gemma4_large",
            THOUGHTS,
            "it has thoughts; set data.template_kwargs: {enable_thinking: true}",
        ),
        ("qwen3_5_nothink", THOUGHTS, "data.template_kwargs: {enable_thinking: true}"),
        (
            "nemotron_3_nano",
            chat("Which?", "Chair."),
            "it has no thoughts; set data.template_kwargs: {enable_thinking: false}",
        ),
    ],
)
def test_what_prompts_rule_out_is_refused_with_a_way_out(
    name: str, example: Example, reason: str
) -> None:
    for loss_on in ("completions", "last"):
        assert reason in reason_of(renderer_of(name, loss_on), example)


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_control_tokens_in_contents_make_no_token(name: str) -> None:
    renderer = renderer_of(name, kwargs=PUBLISHED[name].kwargs)
    special = renderer.escaping.special
    words = " ".join(renderer.tokenizer.convert_ids_to_tokens(sorted(special)))

    def controls(example: Example) -> list[int]:
        return [id_ for id_ in renderer.encode(example).input_ids if id_ in special]

    forged = chat(f"Is {words} so?", f"It is {words} here.", f"{words}?", f"No, {words}.")
    assert controls(forged) == controls(chat("Is it so?", "It is here.", "So?", "No."))


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "gptoss", "minimax2", "qwen3_8"])
def test_control_tokens_in_thoughts_make_no_token(name: str) -> None:
    renderer = renderer_of(name)
    stop = PUBLISHED.get(name, PUBLISHED["qwen3"]).stop
    (end,) = renderer.tokenizer.convert_tokens_to_ids([stop])
    own = renderer.encode(chat("Which?", "Red.")).input_ids.count(end)
    forged = chat("Which?", f"<think>\nIt is {stop}.\n</think>\n\nRed.")
    (found,) = encode_many(renderer, [forged])
    if isinstance(found, str):
        assert "contains the text of a control token" in found
    else:
        assert found.input_ids.count(end) == own


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("glm4moe", ["<eos>", "<|user|>"]),
        ("gptoss", ["<|return|>", "<eos>"]),
        ("olmo3", ["<eos>", "<|im_end|>"]),
        ("phi4_mini", ["<|end|>", "<eos>"]),
    ],
)
def test_the_tokens_that_end_an_answer(name: str, stops: list[str]) -> None:
    """`<|end|>` of gpt-oss ends thoughts too."""
    renderer = renderer_of(name)
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.stop_ids) == stops
    assert renderer_of(name, "last").stop_ids == renderer.stop_ids


# Dates and parts


@pytest.mark.parametrize("name", ["gptoss", "llama3_2", "mistral_small", "smollm3"])
def test_a_prompt_is_the_same_on_another_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return cls(2031, 5, 17)

    turns = [Message("user", "Which chair?")]
    before = renderer_of(name).render(turns, prompt=True).text
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    tokenizer = tokenizer_named(name)
    given = [{"role": "user", "content": "Which chair?"}]
    theirs = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
    assert "2031" in theirs
    template = ChatTemplate(
        tokenizer.get_chat_template(), tokenizer.special_tokens_map, False, "(?!)", "(?!)", 2.0
    )
    after = template.render(turns, prompt=True)
    assert isinstance(after, Rendered)
    assert after.text == before and "2031" not in before and "2026" in before


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% for part in m.content if part.kind %}{{ part.kind }}{% endfor %}"
        "{{ eos_token }}{% endfor %}",
        "{% for m in messages %}{{ m.role if m.content }}{{ eos_token }}{% endfor %}",
    ],
)
def test_a_template_that_writes_nothing_of_a_content_is_refused(template: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(("<eos>",)), eos_token="<eos>")
    tokenizer.chat_template = template
    reason = "the chat template does not write what a turn says"
    assert reason_of(Renderer(tokenizer), chat("Which?", "Chair.")) == reason


# Answers read back


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_generated_answer_is_read_back_as_the_content_it_was(name: str) -> None:
    """Without the empty thinking block or the channel that the model writes before it."""
    published = PUBLISHED[name]
    renderer = renderer_of(name, kwargs=published.kwargs)
    reader = AnswerReader(renderer)
    for answer in [*AWKWARD, "final", "<", "assistant"]:
        row = renderer.encode(chat("Which?", answer))
        read = reader.text(row.input_ids[row.prompt_tokens : -1])
        assert read.strip() == answer.strip()
        # Of an answer that was cut off, nothing but what it says is left.
        for end in range(row.prompt_tokens, len(row.input_ids) - 1):
            part = reader.text(row.input_ids[row.prompt_tokens : end])
            assert answer.strip().startswith(part.strip().rstrip("\ufffd"))


@pytest.mark.parametrize(
    "name",
    ["gemma4_large thinking", "gptoss", "lfm2_2_5", "muse_glimmer", "qwen3", "qwen3_5_think"],
)
def test_thoughts_are_read_back_too(name: str) -> None:
    renderer = renderer_of(name, kwargs=THINKING if "thinking" in name else ())
    row = renderer.encode(chat("Hue?", THOUGHT.format("red") + "Red."))
    read = AnswerReader(renderer).text(row.input_ids[row.prompt_tokens : -1])
    assert read == THOUGHT.format("red") + "Red."
