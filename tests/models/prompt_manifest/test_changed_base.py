"""A run is refused if its base, config.json or trained weights have changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ftcli.errors import FtcliError
from ftcli.models import prompt_manifest
from ftcli.models.files.base_files import base_fingerprint
from ftcli.models.prompt_manifest import read_prompt_manifest, verified_base
from ftcli.runs.folder import RunFolder
from tests.commands.test_training import stop_at
from tests.models.prompt_manifest.manifest_runs import (
    OPENINGS,
    Ask,
    edit_config,
    other_weights,
    refusals,
    write_recipe,
)
from tests.several import flip_a_bit
from tests.tiers import tiers


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


def test_weights_that_had_to_be_downloaded_are_verified_after_loading(
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
    assert ask("eval", "runs/lora")[0] == 1, "cached scores are not shown either"
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
@pytest.mark.parametrize("name", tiers(["lora", "full"], "lora"))
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
