"""What a run is known by, and that it is refused where anything of it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from ftcli.cli import run
from ftcli.config.data import builtin_template
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.errors import FtcliError
from ftcli.models import prompt_manifest
from ftcli.models.base_files import base_fingerprint
from ftcli.models.prompt_manifest import read_prompt_manifest, verified_base
from ftcli.runs.folder import RunFolder
from ftcli.training.opening import open_run
from tests.commands.test_training import stop_at
from tests.conftest import CHATML, pair
from tests.several import flip_a_bit

Ask = Callable[..., tuple[int, str]]
# A base whose template says something of its own before the user's first word.
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
)
OPENINGS = (["eval"], ["generate", "a prompt"], ["merge"])


def set_template(folder: Path, text: str | None) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(text) if text else file.unlink()


def other_weights(folder: Path) -> None:
    """Other weights of the same shape."""
    file = folder / "model.safetensors"
    save_file({n: t + 0.01 for n, t in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, its LoRA run, and a full run on the same rows."""
    folder = tmp_path_factory.mktemp("trained")
    base = Path(shutil.copytree(tiny_model, folder / "base"))
    set_template(base, WITH_DEFAULT)
    (folder / "rows.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(24)))
    for mode in ("lora", "full"):
        write_recipe(folder, mode)
        assert run(["train", str(folder / f"{mode}.yaml")]) == 0
    return folder


def write_recipe(folder: Path, mode: str, **sections: Any) -> Path:
    recipe: dict[str, Any] = {
        "name": mode,
        "model": {"id": "base"},
        "method": {"mode": mode},
        "data": {"train": "rows.jsonl", "validation": 4, "test": 4, "max_length": 256},
        "training": {"max_steps": 4, "batch_size": 4, "save_steps": 2},
        "generation": {"max_new_tokens": 4},
    }
    path = folder / f"{sections.get('name', mode)}.yaml"
    path.write_text(yaml.safe_dump(recipe | sections))
    return path


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in a folder that a test may change."""
    folder = Path(shutil.copytree(trained, tmp_path / "here"))
    for recipe in folder.rglob("recipe.yaml"):
        recipe.write_text(recipe.read_text().replace(str(trained), str(folder)))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def command(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = run([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out)["error"]["message"] if code else out

    return command


def refusals(ask: Ask, name: str = "lora") -> set[str]:
    """What eval, generate and merge say, each refusing."""
    found = [ask(words[0], f"runs/{name}", *words[1:]) for words in OPENINGS]
    assert [code for code, _ in found] == [1, 1, 1]
    return {message for _, message in found}


# What is kept


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


def open_tokenizer(place: Path, name: str = "lora") -> Any:
    from ftcli.models.load import load_tokenizer

    return load_tokenizer(str(RunFolder(place / "runs" / name).trained()))


def test_plain_texts_are_known_by_fixed_strings_and_need_no_template(place: Path, ask: Ask) -> None:
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


# What is refused


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
        f"  golden prompt {number}, token {k + 1}: {before} → {after}" for number in (1, 2, 3)
    ]
    assert last == "put back what has changed, or train anew: ftcli train runs/lora --fresh"


def test_eval_of_a_file_refuses_before_it_reads_a_row(place: Path, ask: Ask) -> None:
    set_template(place / "runs" / "lora" / "adapter", "{{ raise_exception('nothing fits') }}")
    code, message = ask("eval", "runs/lora", "--data", "rows.jsonl")
    assert code == 1
    assert "golden prompt 3, in use: the chat template refuses it: nothing fits" in message


@pytest.mark.parametrize("name", ["lora", "full"])
@pytest.mark.parametrize("edited", ["template", "base"])
def test_figures_that_were_kept_are_not_told_of_what_is_another_by_now(
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


@pytest.mark.fault(20)
def test_another_base_of_the_same_shape_is_refused_before_it_is_loaded(
    place: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 20."""
    from ftcli.export import merged_model
    from ftcli.inference import open_model
    from ftcli.training import building

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the base was loaded")

    old = base_fingerprint("base")
    other_weights(place / "base")
    new = base_fingerprint("base")
    assert old is not None and new is not None and old != new
    for module in (building, merged_model, open_model):
        monkeypatch.setattr(module, "load_base", never)
    (message,) = refusals(ask)
    line = f"  weights of the base ({place}/base): {old[:12]} → {new[:12]}"
    assert message.splitlines()[1:-1] == [line]
    further = write_recipe(place, "lora", name="further")
    code, message = ask("train", further, "--from", "runs/lora")
    assert code == 1 and line in message
    assert not (place / "runs" / "further" / "run.json").exists()


def test_the_same_base_in_other_shards_is_the_same(place: Path, ask: Ask) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("base", dtype="auto")
    (place / "base" / "model.safetensors").unlink()
    model.save_pretrained("base", max_shard_size="100KB")
    assert len(list((place / "base").glob("model-*.safetensors"))) > 1
    assert ask("generate", "runs/lora", "a prompt")[0] == 0


def test_a_whole_model_needs_its_base_for_a_comparison_only(place: Path, ask: Ask) -> None:
    other_weights(place / "base")
    assert ask("generate", "runs/full", "a prompt")[0] == 0
    assert ask("eval", "runs/full", "--no-base")[0] == 0
    code, message = ask("eval", "runs/full", "--limit", "2")
    assert code == 1 and "weights of the base" in message
    lines = edit_config(place / "runs" / "full" / "model")
    code, message = ask("generate", "runs/full", "a prompt")
    assert code == 1 and all(line in message for line in lines)


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


def test_weights_that_had_to_be_fetched_are_verified_after_loading(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(trained / "runs" / "lora")
    kept = read_prompt_manifest(folder).base
    loaded = []
    for after, refused in ((kept, False), ("0" * 32, True), (None, True)):
        found = iter([None, after])
        monkeypatch.setattr(prompt_manifest, "base_fingerprint", lambda *_, f=found: next(f))
        try:
            with verified_base([folder], "owner/base", None):
                loaded.append(after)
            assert not refused
        except FtcliError as error:
            assert refused and error.code == "prompt_manifest"
    assert loaded == [kept, "0" * 32, None]


def test_a_base_that_was_not_found_when_the_run_began_is_not_asked_for(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(trained / "runs" / "lora")
    unknown = replace(read_prompt_manifest(folder), base=None)
    monkeypatch.setattr(prompt_manifest, "read_prompt_manifest", lambda _: unknown)
    with verified_base([folder], str(trained / "base"), None):
        pass


# config.json and the trained weights


def edit_config(folder: Path) -> list[str]:
    """Other outputs of the same weights; what is said of each key."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    rope, eps = config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]
    config |= {"rms_norm_eps": 0.5, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}
    file.write_text(json.dumps(config))
    return [f"rms_norm_eps: {eps} → 0.5", f"rope_parameters.rope_theta: {rope} → 7.0"]


@pytest.mark.fault(20)
def test_an_edited_config_of_the_base_is_refused_with_its_keys(
    place: Path, ask: Ask, observed: Callable[[str], None]
) -> None:
    kept = (place / "base" / "config.json").read_text()
    lines = [f"  config.json ({place}/base): {line}" for line in edit_config(place / "base")]
    (message,) = refusals(ask)
    assert message.splitlines()[1:-1] == lines
    code, message = ask("train", write_recipe(place, "lora", name="more"), "--from", "runs/lora")
    assert code == 1 and lines[0] in message
    assert ask("generate", "runs/full", "a prompt")[0] == 0
    assert ask("eval", "runs/full", "--limit", "2")[0] == 1
    (place / "base" / "config.json").write_text(kept)
    assert ask("eval", "runs/lora")[0] == 0
    edit_config(place / "base")
    assert ask("eval", "runs/lora")[0] == 1, "kept figures are no way round it"
    observed("rms_norm_eps and rope_theta edited: eval, generate, merge, --from exit 1, both named")


def test_what_another_saving_changes_in_a_config_is_free(place: Path, ask: Ask) -> None:
    file = place / "base" / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": "float16", "use_cache": False}
    config |= {
        "transformers_version": "4.40.0",
        "_name_or_path": "elsewhere",
        "attention_bias": False,
    }
    config.pop("dtype", None)
    file.write_text(json.dumps(config, sort_keys=True))
    assert ask("generate", "runs/lora", "a prompt")[0] == 0


def test_the_config_of_a_hub_model_is_that_of_the_local_cache(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache, commit = tmp_path / "models--owner--tiny", "a" * 40
    shutil.copytree(trained / "base", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    folder = RunFolder(trained / "runs" / "lora")
    with verified_base([folder], "owner/tiny", None):
        pass
    edit_config(cache / "snapshots" / commit)
    with (
        pytest.raises(FtcliError, match=r"config\.json \(owner/tiny\): rms_norm_eps"),
        verified_base([folder], "owner/tiny", None),
    ):
        raise AssertionError("the block was entered")


@pytest.mark.fault(2)
@pytest.mark.parametrize("name", ["lora", "full"])
def test_damaged_weights_are_refused_by_all_that_use_them(
    name: str, place: Path, ask: Ask, observed: Callable[[str], None]
) -> None:
    run_folder = place / "runs" / name
    (file,) = RunFolder(run_folder).trained().glob("*.safetensors")
    further = write_recipe(place, name, name="further")
    commands = [[words[0], run_folder, *words[1:]] for words in OPENINGS]
    commands.append(["train", further, "--from", run_folder])
    flip_a_bit(file)
    found = [ask(*command) for command in commands]
    assert [code for code, _ in found] == [1] * 4
    for _, message in found:
        assert message.startswith(
            f"{file.relative_to(place)}: is not as the training wrote it (sha256 "
        )
        assert message.endswith(f"or train again: ftcli train runs/{name} --fresh")
    assert not (place / "runs" / "further").exists()
    flip_a_bit(file)
    assert [ask(*command)[0] for command in commands] == [0] * 4, "the bit is back, the date new"
    observed(f"{name}: one bit flipped: 4 of 4 commands exit 1")


# Resuming


@pytest.mark.fault(3)
def test_a_run_resumes_only_on_its_own_base_and_keeps_its_manifest(
    place: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, base = write_recipe(place, "lora", name="stopped"), place / "base"
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        assert ask("train", recipe)[0] == 130
    folder = RunFolder(place / "runs" / "stopped")
    manifest, steps = folder.prompt_manifest.read_bytes(), folder.steps_saved()
    before = os.stat(folder.prompt_manifest)
    for file, edit in (("model.safetensors", other_weights), ("config.json", edit_config)):
        kept = (base / file).read_bytes()
        lines = edit(base) or ["weights of the base"]
        code, message = ask("train", recipe)
        assert code == 1 and all(line in message for line in lines)
        assert folder.prompt_manifest.read_bytes() == manifest and folder.steps_saved() == steps
        (base / file).write_bytes(kept)
    assert ask("train", recipe)[0] == 0
    assert os.stat(folder.prompt_manifest).st_mtime_ns == before.st_mtime_ns
    assert ask("generate", "runs/stopped", "a prompt")[0] == 0


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


# Templates in recipes


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
