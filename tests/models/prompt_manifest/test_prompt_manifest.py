"""What the prompt manifest contains, and who writes and reads it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.models.files.base_files import base_fingerprint
from ftcli.models.prompt_manifest import read_prompt_manifest
from ftcli.runs.folder import RunFolder
from ftcli.training.opening import open_run
from tests.commands.test_training import stop_at
from tests.conftest import pair
from tests.models.prompt_manifest.manifest_runs import (
    OPENINGS,
    WITH_DEFAULT,
    Ask,
    open_tokenizer,
    other_weights,
    refusals,
    set_template,
    write_recipe,
)


def test_a_manifest_holds_what_the_run_was_trained_with(trained: Path) -> None:
    folder = RunFolder(trained / "runs" / "lora")
    manifest = read_prompt_manifest(folder)
    prepared = open_run(folder.path).prepared
    assert manifest.base == base_fingerprint(str(trained / "base"))
    assert manifest.template == hashlib.sha256(WITH_DEFAULT.encode()).hexdigest()
    assert manifest.stop_ids == prepared.stop_ids and manifest.pad_id == prepared.pad_id
    assert manifest.system is None and manifest.template_kwargs == {}
    rows = read_split(folder.data, "test").to_pylist()[:3]
    assert len(manifest.prompts) == 3
    for prompt, row in zip(manifest.prompts, rows, strict=True):
        assert list(prompt.ids) == row["input_ids"][: row["prompt_tokens"]]
        assert [m.content for m in prompt.messages] == [json.loads(row["messages"])[0][1]]


@pytest.mark.fault(13)
def test_prompts_in_use_are_those_of_the_training(
    place: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch, observed: Callable[[str], None]
) -> None:
    """Fault 13, with the default system prompt of the template."""
    from ftcli.inference import generation

    seen: list[list[int]] = []
    generate_ids, stream_answer = generation.generate_ids, generation.stream_answer

    def generated(model: Any, prompts: Any, *rest: Any) -> Any:
        seen.extend(list(prompt) for prompt in prompts)
        return generate_ids(model, prompts, *rest)

    def streamed(model: Any, prompt: Any, *rest: Any) -> Any:
        seen.append(list(prompt))
        return stream_answer(model, prompt, *rest)

    monkeypatch.setattr(generation, "generate_ids", generated)
    monkeypatch.setattr(generation, "stream_answer", streamed)
    rows = read_split(place / "runs" / "lora" / "data", "test").to_pylist()
    wanted = [row["input_ids"][: row["prompt_tokens"]] for row in rows]
    questions = [json.loads(row["messages"])[0][1] for row in rows]
    assert ask("eval", "runs/lora", "--no-base")[0] == 0
    assert sorted(seen) == sorted(wanted)
    (place / "questions.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in questions)
    )
    seen.clear()
    flags = ("--input", "questions.jsonl", "--output", "answers.jsonl")
    assert ask("generate", "runs/lora", *flags)[0] == 0
    assert sorted(seen) == sorted(wanted)
    seen.clear()
    assert ask("generate", "runs/lora", questions[0])[0] == 0
    assert seen == wanted[:1]
    assert "helpful" in open_tokenizer(place).decode(seen[0])
    observed(f"eval, generate of a file and of one prompt: ids of {len(wanted)} of {len(wanted)}")


def test_plain_texts_are_recorded_as_fixed_texts_and_need_no_template(
    place: Path, ask: Ask
) -> None:
    texts = [json.dumps({"text": f"A red kettle, number {n}."}) + "\n" for n in range(8)]
    (place / "texts.jsonl").write_text("".join(texts))
    set_template(place / "base", None)
    recipe = write_recipe(place, "lora", name="texts", data={"train": "texts.jsonl"})
    code, out = ask("train", recipe)
    assert code == 0
    assert json.loads(out)["stop_rate"] is None and json.loads(out)["stop_rate_rows"] == 0
    manifest = read_prompt_manifest(RunFolder(place / "runs" / "texts"))
    assert [prompt.messages for prompt in manifest.prompts] == [(), (), ()]
    tokenizer = open_tokenizer(place, "texts")
    assert [tokenizer.decode(p.ids) for p in manifest.prompts] == [p.text for p in manifest.prompts]
    assert manifest.template is None and tokenizer.chat_template is None
    assert ask("generate", "runs/texts", "A red")[0] == 0


def test_a_run_that_was_moved_opens_where_it_is_now(place: Path, ask: Ask) -> None:
    (place / "shelf").mkdir()
    moved = shutil.move(place / "runs" / "lora", place / "shelf" / "kept")
    for command, *words in OPENINGS:
        assert ask(command, moved, *words)[0] == 0
    assert (moved / "merged" / "merge_report.json").is_file()
    assert not (place / "runs" / "lora").exists()
    other_weights(place / "base")
    code, message = ask("generate", moved, "a prompt")
    assert code == 1 and f"weights of the base ({place}/base)" in message


def test_a_column_of_system_prompts_is_the_same_under_both_its_names(place: Path, ask: Ask) -> None:
    rows = [{**pair(n), "persona": f"You are {n}."} for n in range(12)]
    (place / "personas.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "personas.jsonl", "system": "persona", "validation": 4}
    assert ask("train", write_recipe(place, "lora", name="personas", data=data))[0] == 0
    assert read_prompt_manifest(RunFolder(place / "runs" / "personas")).system == "{persona}"
    assert ask("eval", "runs/personas", "--no-base")[0] == 0
    code, message = ask("eval", "runs/personas", "--set", "data.system=prompt")
    assert code == 1 and "system prompt: '{persona}' → 'prompt'" in message


def test_a_run_without_a_manifest_is_refused(place: Path, ask: Ask) -> None:
    (place / "runs" / "lora" / "prompt_manifest.json").unlink()
    (message,) = refusals(ask)
    assert message.endswith(
        "runs/lora has no prompt_manifest.json, so its base and prompts are unknown; train it "
        "again: ftcli train runs/lora --fresh"
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"prompts": [], "stop_ids": []}'])
def test_a_manifest_that_cannot_be_read_is_named(content: str, place: Path, ask: Ask) -> None:
    file = place / "runs" / "lora" / "prompt_manifest.json"
    file.write_text(content)
    code, message = ask("generate", "runs/lora", "a")
    assert code == 1 and "prompt_manifest.json: cannot be read" in message
    assert message.rstrip().endswith("or train again: ftcli train runs/lora --fresh")


def test_a_run_without_a_manifest_resumes_only_where_nothing_was_trained(
    place: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(place, "lora", name="stopped")
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        assert ask("train", recipe)[0] == 130
    folder = RunFolder(place / "runs" / "stopped")
    folder.prompt_manifest.unlink()
    code, message = ask("train", recipe)
    assert code == 1 and "has no prompt_manifest.json" in message
    shutil.rmtree(folder.checkpoints)
    code, message = ask("train", recipe)
    assert code == 1 and "the checkpoint of step 2 is gone" in message
    folder.update_manifest(saved_step=None)
    assert ask("train", recipe)[0] == 0
    assert read_prompt_manifest(folder).base == base_fingerprint("base")
