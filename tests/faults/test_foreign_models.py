"""Untrusted model folders: nothing in them is executed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.conftest import save_recipe, save_rows
from tests.faults.attacks import Attack, change_json, copied

pytestmark = [pytest.mark.slow, pytest.mark.fault(30)]

Observed = Callable[[str], None]
CODE = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForCausalLM": "evil.Model",
    "AutoProcessor": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
}


@pytest.fixture
def attack(tmp_path: Path) -> Attack:
    return Attack(tmp_path / "executed")


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path, attack: Attack) -> Path:
    """A copy of the tiny model, with a file of code next to it."""
    folder = copied(tiny_model, tmp_path / "base")
    (folder / "evil.py").write_text(attack.python)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, base: Path) -> Path:
    save_rows(tmp_path)
    training = {"max_steps": 1, "batch_size": 4}
    return save_recipe(tmp_path, base, training=training, generation={"max_new_tokens": 2})


@pytest.fixture(autouse=True)
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on any question to the user."""

    def asked(*_: object) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)


def refused(
    recipe: Path, capsys: pytest.CaptureFixture[str], command: str = "train", code: int = 1
) -> str:
    """The single line of output of a failing command."""
    assert run([command, str(recipe)]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# Weights


def pickle_all(base: Path, attack: Attack) -> str:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(attack.pickled)
    return "pytorch_model.bin"


def pickle_in_shards(base: Path, attack: Attack) -> str:
    (base / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin"
    (base / name).write_bytes(attack.pickled)
    weights = {"weight_map": {"model.embed_tokens.weight": name}}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(weights))
    return name


def pickle_of_an_index(base: Path, attack: Attack) -> str:
    """An index of safetensors that leads to a pickle."""
    name = pickle_in_shards(base, attack)
    (base / "pytorch_model.bin.index.json").rename(base / "model.safetensors.index.json")
    return f"{name!r}, and ftcli opens only safetensors files in the same folder"


def pickle_named_by_the_config(base: Path, attack: Attack) -> str:
    (base / "adapter_model.bin").write_bytes(attack.pickled)
    change_json(base / "config.json", transformers_weights="adapter_model.bin")
    return "its config.json has transformers_weights"


def original_pickle(base: Path, attack: Attack) -> str:
    (base / "model.safetensors").rename(base / "consolidated.safetensors")
    (base / "consolidated.00.pth").write_bytes(attack.pickled)
    return "consolidated.00.pth"


@pytest.mark.parametrize(
    "edit",
    [
        pickle_all,
        pickle_in_shards,
        pickle_of_an_index,
        pickle_named_by_the_config,
        original_pickle,
    ],
)
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_weights_that_are_pickles_are_refused_before_they_are_opened(
    edit: Callable[[Path, Attack], str],
    command: str,
    recipe: Path,
    base: Path,
    attack: Attack,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    words = edit(base, attack)
    line = refused(recipe, capsys, command)
    assert words in line and str(base) in line
    assert not attack.succeeded()
    observed("5 ways to name a pickle: each refused in one line, none opened")


def test_the_pickles_would_have_executed(base: Path, attack: Attack) -> None:
    import torch

    pickle_all(base, attack)
    with suppress(RuntimeError):  # after unpickling: it is not a checkpoint
        torch.load(base / "pytorch_model.bin", weights_only=False)
    assert attack.succeeded()


# Code and other files that a folder names


def code_for_an_unknown_type(base: Path) -> str:
    change_json(base / "config.json", auto_map=CODE, model_type="evil")
    return "model_type 'evil' is not in transformers"


def another_config(base: Path) -> str:
    """A valid config.json that refers to one with code."""
    change_json(base / "config.4.0.0.json", model_type="evil", auto_map=CODE)
    change_json(base / "config.json", configuration_files=["config.4.0.0.json"])
    return "its config.json has configuration_files"


def tokenizer_that_is_no_tokenizer(base: Path) -> str:
    """transformers takes any class that it has; this one asks whether to run code."""
    change_json(base / "config.json", auto_map=CODE)
    change_json(base / "tokenizer_config.json", tokenizer_class="AutoProcessor")
    return "its tokenizer_class is 'AutoProcessor', which is not a tokenizer"


def tokenizer_class_in_the_config(base: Path) -> str:
    change_json(base / "config.json", auto_map=CODE, tokenizer_class="AutoModel")
    return "its tokenizer_class is 'AutoModel', which is not a tokenizer"


def tokenizer_of_code(base: Path) -> str:
    """A class that only the folder's own file has."""
    (base / "tokenizer.json").unlink()
    change_json(base / "config.json", model_type="gpt_neox", rotary_pct=1.0)
    change_json(
        base / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": CODE["AutoTokenizer"]},
    )
    return "its tokenizer is code of its own (auto_map), and ftcli runs no code of a model"


def adapter_inside(base: Path) -> str:
    """transformers would apply it to the weights, as its config says."""
    change_json(
        base / "adapter_config.json",
        peft_type="LORA",
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        base_model_name_or_path="owner/elsewhere",
        megatron_config={"a": 1},
        megatron_core="megatron.evil",
    )
    return "has an adapter next to the model"


def not_what_its_type_is(base: Path) -> str:
    change_json(base / "config.json", auto_map=7, rope_parameters="evil")
    return "cannot be opened"


@pytest.mark.parametrize(
    "edit",
    [
        code_for_an_unknown_type,
        another_config,
        tokenizer_that_is_no_tokenizer,
        tokenizer_class_in_the_config,
        tokenizer_of_code,
        adapter_inside,
        not_what_its_type_is,
    ],
)
def test_a_folder_that_names_code_or_other_files_is_refused(
    edit: Callable[[Path], str],
    recipe: Path,
    base: Path,
    attack: Attack,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    words = edit(base)
    line = refused(recipe, capsys, "prepare" if edit is not code_for_an_unknown_type else "train")
    assert words in line
    assert not attack.succeeded() and "evil" not in sys.modules
    observed("code, other files, an adapter inside, classes of other kinds: refused, nothing ran")


def test_code_next_to_a_model_that_needs_none_is_left_alone(
    recipe: Path,
    base: Path,
    attack: Attack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    """Every command works with a folder full of it."""
    change_json(base / "config.json", auto_map=CODE)
    change_json(base / "tokenizer_config.json", auto_map={"AutoTokenizer": CODE["AutoTokenizer"]})
    change_json(base / "generation_config.json", custom_generate="evil")
    change_json(base / "processor_config.json", auto_map=CODE, processor_class="EvilProcessor")
    (base / "custom_generate").mkdir()
    (base / "custom_generate" / "generate.py").write_text(attack.python)
    (base / "custom_generate" / "requirements.txt").write_text("no-such-package\n")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "added_tokens.pkl"):
        (base / name).write_bytes(attack.pickled)
    made = tmp_path / "runs" / "tiny"
    for arguments in (
        ["prepare", str(recipe)],
        ["train", str(recipe)],
        ["eval", str(made)],
        ["merge", str(made)],
        ["generate", str(made), "Product: kettle"],
    ):
        assert run(arguments) == 0, capsys.readouterr().err
    assert not attack.succeeded() and "evil" not in sys.modules
    assert not list(made.rglob("*.py")) + list(made.rglob("*.bin")), "nor is it handed on"
    observed("5 commands with auto_map, custom_generate and 4 pickles: 0 executions")


def test_the_code_would_have_executed(
    base: Path, attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoTokenizer, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    tokenizer_that_is_no_tokenizer(base)
    with pytest.raises(ValueError, match="custom code"):  # it asks despite trust_remote_code=False
        AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    assert not attack.succeeded()
    code_for_an_unknown_type(base)
    AutoConfig.from_pretrained(base, trust_remote_code=True)
    assert attack.succeeded()


@pytest.mark.parametrize("written", ["model.trust_remote_code=true", "trust_remote_code=true"])
def test_trust_is_no_key_of_a_recipe(
    written: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(recipe), "--set", written]) == 2
    assert "ftcli never runs code of a model" in capsys.readouterr().err


def test_trust_is_no_flag(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(recipe), "--trust-remote-code"]) == 2
    assert "No such option: --trust-remote-code" in capsys.readouterr().err
