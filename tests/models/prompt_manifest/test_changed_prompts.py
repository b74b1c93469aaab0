"""A run is refused if its template, tokenizer or system prompt has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ftcli.cli import run
from ftcli.config.data import builtin_template
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.models.prompt_manifest import read_prompt_manifest
from ftcli.runs.folder import RunFolder
from tests.conftest import CHATML
from tests.models.prompt_manifest.manifest_runs import (
    WITH_DEFAULT,
    Ask,
    open_tokenizer,
    other_weights,
    refusals,
    set_template,
    write_recipe,
)
from tests.tiers import tiers


def test_a_changed_template_is_refused_with_the_first_token_that_differs(
    place: Path, ask: Ask
) -> None:
    template = WITH_DEFAULT.replace("helpful", "lazy")
    set_template(place / "runs" / "lora" / "adapter", template)
    (message,) = refusals(ask)
    first, *differences, last = message.splitlines()
    assert first == "runs/lora is no longer what was trained:"
    old, new = (hashlib.sha256(text.encode()).hexdigest() for text in (WITH_DEFAULT, template))
    assert differences[0] == f"  chat template: {old[:12]} → {new[:12]}"
    golden = read_prompt_manifest(RunFolder(place / "runs" / "lora")).prompts[0].ids
    tokenizer = open_tokenizer(place)
    messages = [{"role": "user", "content": "a"}]
    changed = tokenizer.apply_chat_template(messages, return_dict=False)
    k = next(i for i, pair in enumerate(zip(golden, changed, strict=False)) if pair[0] != pair[1])
    before, after = (f"{ids[k]} {tokenizer.decode([ids[k]])!r}" for ids in (golden, changed))
    assert differences[1:] == [
        f"  recorded prompt {number}, token {k + 1}: {before} → {after}" for number in (1, 2, 3)
    ]
    assert last == "restore what has changed, or train again: ftcli train runs/lora --fresh"


def test_eval_of_a_file_refuses_before_it_reads_a_row(place: Path, ask: Ask) -> None:
    set_template(place / "runs" / "lora" / "adapter", "{{ raise_exception('nothing fits') }}")
    code, message = ask("eval", "runs/lora", "--data", "rows.jsonl")
    assert code == 1
    assert "recorded prompt 3, in use: the chat template refuses it: nothing fits" in message


@pytest.mark.parametrize(
    ("name", "edited"),
    tiers(
        [("full", "template"), ("lora", "base"), ("full", "base"), ("lora", "template")],
        ("lora", "base"),
    ),
)
def test_cached_scores_of_a_changed_run_are_not_shown(
    name: str, edited: str, place: Path, ask: Ask
) -> None:
    assert ask("eval", f"runs/{name}")[0] == 0
    again = ask("eval", f"runs/{name}")
    assert again == ask("eval", f"runs/{name}") and again[0] == 0
    if edited == "base":
        other_weights(place / "base")
    else:
        folder = {"lora": "adapter", "full": "model"}[name]
        set_template(place / "runs" / name / folder, CHATML)
    code, message = ask("eval", f"runs/{name}")
    assert code == 1 and "is no longer what was trained" in message


@pytest.mark.parametrize("name", ["lora", "full"])
def test_words_that_no_recorded_prompt_holds_may_not_change_their_ids(
    name: str, place: Path, ask: Ask
) -> None:
    file = place / "runs" / name / {"lora": "adapter", "full": "model"}[name] / "tokenizer.json"
    rules = json.loads(file.read_text())
    known = {
        i
        for prompt in read_prompt_manifest(RunFolder(place / "runs" / name)).prompts
        for i in prompt.ids
    }
    vocabulary = rules["model"]["vocab"]
    one, other = [word for word, i in vocabulary.items() if i not in known][-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(rules))
    (message,) = refusals(ask, name) if name == "lora" else {ask("eval", f"runs/{name}")[1]}
    assert message.splitlines()[1].startswith("  tokenizer: ")


def test_changed_control_tokens_are_refused(place: Path, ask: Ask) -> None:
    file = place / "runs" / "lora" / "adapter" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config |= {"eos_token": "<|endoftext|>", "pad_token": "<|im_start|>"}
    file.write_text(json.dumps(config))
    (message,) = refusals(ask)
    ids = {
        t: open_tokenizer(place).convert_tokens_to_ids(t) for t in config.values() if "<|" in str(t)
    }
    end = open_tokenizer(place).convert_tokens_to_ids("<|im_end|>")
    text, start = ids["<|endoftext|>"], ids["<|im_start|>"]
    assert (
        f"  stop tokens: {end} '<|im_end|>' → {end} '<|im_end|>', {text} '<|endoftext|>'" in message
    )
    assert f"  pad token: {text} '<|endoftext|>' → {start} '<|im_start|>'" in message


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.template=plain", "chat template: "),
        ("data.template_kwargs={enable_thinking: false}", 'data.template_kwargs: {} → {"enable_'),
        ("data.system=Be brief.", "system prompt: None → 'Be brief.'"),
    ],
)
def test_what_the_training_fixed_cannot_be_overridden(
    override: str, line: str, place: Path, ask: Ask
) -> None:
    code, message = ask("eval", "runs/lora", "--set", override)
    assert code == 1 and f"\n  {line}" in message


def test_a_base_without_a_template_is_trained_in_the_plain_one(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_template(place / "base", None)
    recipe = write_recipe(place, "lora", name="bare")
    capsys.readouterr()
    assert run(["train", str(recipe)]) == 0
    assert capsys.readouterr().err.count("note: base has no chat template; ") == 1
    assert open_tokenizer(place, "bare").chat_template == builtin_template("plain").text
    for command in (["eval", "runs/bare"], ["generate", "runs/bare", "a"], ["merge", "runs/bare"]):
        assert run(command) == 0
    merged = place / "runs" / "bare" / "merged" / "chat_template.jinja"
    assert merged.read_text() == builtin_template("plain").text
    row = read_split(place / "runs" / "bare" / "data", "train").to_pylist()[0]
    question, answer = (content for _, content in json.loads(row["messages"]))
    assert open_tokenizer(place, "bare").decode(row["input_ids"]) == (
        f"User:\n{question}\n\nAssistant:\n{answer}<|im_end|>"
    )


def test_a_template_of_the_recipe_is_saved_with_the_run(place: Path, ask: Ask) -> None:
    file = place / "chat.jinja"
    file.write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    data = {"train": "rows.jsonl", "template": "chat.jinja", "validation": 4}
    assert ask("train", write_recipe(place, "lora", name="given", data=data))[0] == 0
    assert open_tokenizer(place, "given").chat_template == file.read_text()
    file.unlink()
    assert ask("generate", "runs/given", "a prompt")[0] == 0
    code, message = ask("train", place / "given.yaml", "--fresh")
    assert code == 2 and "data.template: 'chat.jinja' is neither a template's name" in message
