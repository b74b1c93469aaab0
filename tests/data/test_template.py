"""Built-in templates, checked on decoded text with matching tokenizers, and the choice of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_rendering import AWKWARD
from transformers import PreTrainedTokenizerBase

from ftcli.config.data import ENDS, Template, builtin_template
from ftcli.config.loader import RecipeFile, with_absolute_paths
from ftcli.config.recipe import Recipe
from ftcli.data.example import Example, Message, Origin
from ftcli.data.tokenizing.choose_template import choose_template, set_template
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.errors import DataError, ModelError, UsageError
from tests.families import (
    BUILDERS,
    FORGED,
    begins_with,
    byte_level,
    chat,
    plain,
    reason_of,
    runs,
    trained_text,
    wrapped,
)

SYSTEM = chat("system: Be brief.", "Which chair?", "The leather one.", "Hue?", "Brown.")
# What SYSTEM becomes, up to the end of its last answer; <s> and </s> begin and end texts.
WRITTEN = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich chair?<|im_end|>\n"
        "<|im_start|>assistant\nThe leather one.<|im_end|>\n<|im_start|>user\nHue?<|im_end|>\n"
        "<|im_start|>assistant\nBrown.<|im_end|>"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhich chair?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nThe leather one.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHue?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nBrown.<|eot_id|>"
    ),
    "gemma": (
        "<start_of_turn>user\nBe brief.\n\nWhich chair?<end_of_turn>\n"
        "<start_of_turn>model\nThe leather one.<end_of_turn>\n"
        "<start_of_turn>user\nHue?<end_of_turn>\n<start_of_turn>model\nBrown.<end_of_turn>"
    ),
    "mistral": (
        "[INST] Be brief.\n\nWhich chair? [/INST] The leather one.</s>"
        "[INST] Hue? [/INST] Brown.</s>"
    ),
    "plain": (
        "System:\nBe brief.\n\nUser:\nWhich chair?\n\nAssistant:\nThe leather one.</s>\n\n"
        "User:\nHue?\n\nAssistant:\nBrown.</s>"
    ),
}
CONTROLS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "mistral": ("[INST]", "[/INST]"),
    "plain": (),
}
CONTENT: dict[str, Callable[[str], str]] = {
    "chatml": str,
    "llama3": str.strip,
    "gemma": str.strip,
    "mistral": lambda content: " " + content,
    "plain": str,
}


def tokenizer_for(name: str, *, begins: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer without a template that knows the template's tokens, <s> and </s>."""
    backend = byte_level(("<s>", "</s>", *CONTROLS[name]))
    if begins:
        backend = begins_with("<s>", backend)
    tokenizer = wrapped(backend, "chatml", bos="<s>", eos="</s>")
    tokenizer.chat_template = None
    return tokenizer


def of_its_kind(name: str) -> PreTrainedTokenizerBase:
    """The fixture in the style of the family, as its base model has it: without a template."""
    tokenizer = (plain() if name == "plain" else BUILDERS[name]()).tokenizer
    tokenizer.chat_template = None
    return tokenizer


def with_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    set_template(tokenizer, builtin_template(name))
    return Renderer(tokenizer)


def stop_of(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return ENDS[name] or tokenizer.eos_token


# Ours, by name


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_what_a_template_writes(name: str, begins: bool) -> None:
    renderer = with_template(name, tokenizer_for(name, begins=begins))
    row = renderer.encode(SYSTEM)
    start = "<s>" if begins else ""
    assert renderer.tokenizer.decode(row.input_ids) == start + WRITTEN[name]
    stop = stop_of(name, renderer.tokenizer)
    answers = ("The leather one.", "Brown.")
    assert trained_text(renderer.tokenizer, row) == "".join(
        CONTENT[name](answer) + stop for answer in answers
    )
    assert row.input_ids[: row.prompt_tokens] == renderer.prompt_ids(SYSTEM.prompt)


@pytest.mark.parametrize("answer", [*AWKWARD, FORGED])
@pytest.mark.parametrize("name", ENDS)
def test_the_last_answer_and_its_end_are_trained_on_whatever_it_holds(
    name: str, answer: str
) -> None:
    renderer = with_template(name, of_its_kind(name))
    tokenizer = renderer.tokenizer
    example = chat(FORGED, "The chair.", "And\n\n", answer)
    row = renderer.encode(example)
    stop = stop_of(name, tokenizer)
    first, last = (tokenizer.decode(run) for run in runs(row))
    assert last == CONTENT[name](answer) + stop
    assert first.strip() == f"The chair.{stop}"
    (end,) = tokenizer.convert_tokens_to_ids([stop])
    assert row.labels[-1] == end and row.labels.count(end) == 2
    assert row.input_ids[: row.prompt_tokens] == renderer.prompt_ids(example.prompt)
    assert renderer.stop_ids == tuple(dict.fromkeys([end, tokenizer.eos_token_id]))


def test_mistrals_turns_have_to_alternate() -> None:
    turns = (Message("user", "a"), Message("user", "b"), Message("assistant", "c"))
    reason = reason_of(
        with_template("mistral", of_its_kind("mistral")), Example(turns, Origin("a", 1))
    )
    assert reason == "the chat template refuses it: user and assistant have to alternate"


@pytest.mark.parametrize("name", [name for name, end in ENDS.items() if end])
def test_a_model_without_the_token_that_ends_answers_is_refused(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        set_template(tokenizer_for("plain"), builtin_template(name))
    assert caught.value.message == (
        f"{name} ends answers with {ENDS[name]}, which is not a token of this model, so that it "
        "would not learn to stop; take plain"
    )


# The user's own


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("{{ messages( }}", 1, "unexpected '}'"),
        ("{% for m in messages %}\n{{ m.content }}\n{% endfo %}", 3, "unknown tag 'endfo'"),
        ("\n{{ messages | shout }}", 2, "No filter named 'shout'"),
    ],
)
def test_a_template_that_does_not_compile_has_its_place(
    text: str, line: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        set_template(tokenizer_for("plain"), Template(text, file=tmp_path / "chat.jinja"))
    start = f"chat.jinja:{line}: data.template does not compile: "
    assert str(caught.value).startswith(start) and reason in str(caught.value)
    recipe = loaded(tmp_path, template=text)
    with pytest.raises(DataError) as caught, recipe.locate():
        choose_template(tokenizer_for("plain"), recipe.recipe)
    start = f"shop.yaml:7: data.template: does not compile, line {line} of it: "
    assert str(caught.value).startswith(start) and reason in str(caught.value)


def test_a_template_of_the_user_begins_as_it_says() -> None:
    tokenizer = tokenizer_for("plain", begins=True)
    set_template(tokenizer, Template("{% for m in messages %}{{ m.content }}{% endfor %}"))
    assert tokenizer.decode(Renderer(tokenizer).prompt_ids([Message("user", "a")])) == "a"


# The choice


def loaded(base: Path, **data: object) -> RecipeFile:
    (base / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (base / "texts.jsonl").write_text('{"text": "a"}\n')
    recipe = Recipe.model_validate(
        {
            "name": "shop",
            "model": {"id": "owner/base"},
            "method": {"mode": "lora"},
            "data": {"train": "rows.jsonl"} | data,
        }
    )
    recipe = with_absolute_paths(recipe, base)
    return RecipeFile(recipe, base / "shop.yaml", lines={"data": 5, "data.template": 7})


def test_a_base_without_a_template_gets_the_plain_one_and_a_note(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("plain")
    note = choose_template(tokenizer, loaded(tmp_path).recipe)
    assert tokenizer.chat_template == builtin_template("plain").text
    assert note == (
        "note: owner/base has no chat template; conversations use the plain one "
        "(docs/templates.md), unless data.template names another"
    )


@pytest.mark.parametrize("data", [{"train": "texts.jsonl"}, {"format": "text"}])
def test_plain_texts_need_no_template(data: dict[str, str], tmp_path: Path) -> None:
    tokenizer = tokenizer_for("plain")
    assert choose_template(tokenizer, loaded(tmp_path, **data).recipe) is None
    assert tokenizer.chat_template is None


def test_a_models_own_template_stays(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = "{{ 'own' }}"
    assert choose_template(tokenizer, loaded(tmp_path).recipe) is None
    assert tokenizer.chat_template == "{{ 'own' }}"


def test_the_recipes_template_takes_its_place_with_a_note(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = "{{ 'own' }}"
    recipe = loaded(tmp_path, template="chatml")
    assert choose_template(tokenizer, recipe.recipe) == (
        "note: data.template replaces owner/base's own chat template"
    )
    assert tokenizer.chat_template == builtin_template("chatml").text
    assert choose_template(tokenizer, recipe.recipe) is None, "it is its own by now"


def test_an_unknown_template_is_an_error_at_its_line(tmp_path: Path) -> None:
    recipe = replace(loaded(tmp_path, template="chatlm"), path=Path("shop.yaml"))
    with pytest.raises(UsageError) as caught, recipe.locate():
        choose_template(tokenizer_for("plain"), recipe.recipe)
    assert str(caught.value).startswith("shop.yaml:7: data.template: 'chatlm' is neither a")
    assert str(caught.value).endswith("did you mean chatml?")
