"""Untrusted runs and adapters: their files are data, and references elsewhere are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from tests.conftest import save_recipe, save_rows
from tests.faults.attacks import Attack, change_json, copied

pytestmark = [pytest.mark.slow, pytest.mark.fault(30)]

Observed = Callable[[str], None]
TRAINING = {"max_steps": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Two finished runs: LoRA, and a soft prompt."""
    home = tmp_path_factory.mktemp("adapters")
    save_rows(home)
    for name, method in (
        ("lora", {"mode": "lora", "rank": 2}),
        ("prompt", {"mode": "prompt-tuning"}),
    ):
        recipe = save_recipe(
            home,
            tiny_model,
            name,
            method=method,
            training=TRAINING,
            generation={"max_new_tokens": 2},
        )
        assert run(["train", str(recipe)]) == 0
    return home


@pytest.fixture
def attack(tmp_path: Path) -> Attack:
    return Attack(tmp_path / "executed")


def refused(made: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line that ends `generate`, or `train --from` where a recipe is given."""
    capsys.readouterr()
    words = ["train", *more, "--from", str(made)] if more else ["generate", str(made), "a"]
    assert run(words) == 1
    story = ("prepare ", "plan ")
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(story)]
    assert len(lines) == 1, lines
    return lines[0]


def pickle_alone(adapter: Path, attack: Attack) -> str:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(attack.pickled)
    return "its weights are a pickle (adapter_model.bin)"


def no_weights(adapter: Path, attack: Attack) -> str:
    (adapter / "adapter_model.safetensors").unlink()
    return "has no adapter_model.safetensors"


def class_to_import(adapter: Path, attack: Attack) -> str:
    mapping = {"base_model_class": "Model", "parent_library": "evil"}
    change_json(adapter / "adapter_config.json", auto_mapping=mapping)
    return 'auto_mapping is {"base_model_class": "Model"'


def module_to_import(adapter: Path, attack: Attack) -> str:
    change_json(
        adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="megatron.evil"
    )
    return "megatron_co"


def cache_to_open(adapter: Path, attack: Attack) -> str:
    """PEFT keeps gradients and covariances in files of torch."""
    cache = adapter / "cache.pt"
    cache.write_bytes(attack.pickled)
    change_json(
        adapter / "adapter_config.json",
        init_lora_weights="corda",
        corda_config={"cache_file": str(cache), "covariance_file": str(cache)},
    )
    return "which ftcli never writes"


def unknown_method(adapter: Path, attack: Attack) -> str:
    change_json(adapter / "adapter_config.json", peft_type="XLORA", adapters={"0": "owner/evil"})
    return "peft_type is 'XLORA', and ftcli opens LORA, PREFIX_TUNING"


def method_of_a_strange_type(adapter: Path, attack: Attack) -> str:
    change_json(adapter / "adapter_config.json", peft_type=["LORA"])
    return "peft_type is ['LORA']"


def expression_for_names(adapter: Path, attack: Attack) -> str:
    """One that takes for ever on the names of layers."""
    change_json(adapter / "adapter_config.json", target_modules="(.+)+X")
    return "target_modules is not a list of names"


def rank_of_another_type(adapter: Path, attack: Attack) -> str:
    change_json(adapter / "adapter_config.json", r={"a": 1})
    return "adapter"


def broken_weights(adapter: Path, attack: Attack) -> str:
    (adapter / "adapter_model.safetensors").write_bytes(attack.pickled)
    return "the adapter cannot be opened"


def tokenizer_that_asks(adapter: Path, attack: Attack) -> str:
    (adapter / "evil.py").write_text(attack.python)
    change_json(
        adapter / "config.json", model_type="evil", auto_map={"AutoProcessor": "evil.Model"}
    )
    change_json(adapter / "tokenizer_config.json", tokenizer_class="AutoProcessor")
    return "its tokenizer_class is 'AutoProcessor', which is not a tokenizer"


@pytest.mark.parametrize(
    "edit",
    [
        pickle_alone,
        no_weights,
        class_to_import,
        module_to_import,
        cache_to_open,
        unknown_method,
        method_of_a_strange_type,
        expression_for_names,
        rank_of_another_type,
        broken_weights,
        tokenizer_that_asks,
    ],
)
def test_an_adapter_that_leads_elsewhere_is_refused(
    edit: Callable[[Path, Attack], str],
    home: Path,
    tmp_path: Path,
    attack: Attack,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    made = copied(home / "runs" / "lora", tmp_path / "stranger")
    words = edit(made / "adapter", attack)
    change_json(made / "run.json", weights=None)  # digests in an untrusted folder prove nothing
    assert words in refused(made, capsys)
    if edit is not tokenizer_that_asks:  # a new run takes its base's
        assert words in refused(made, capsys, str(home / "lora.yaml"))
    assert not attack.succeeded() and "evil" not in sys.modules
    observed("11 changes to an adapter folder: each refused in one line, none executed")


def test_a_text_to_begin_with_fetches_no_tokenizer(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = copied(home / "runs" / "prompt", tmp_path / "stranger")
    change_json(made / "run.json", weights=None)
    change_json(
        made / "adapter" / "adapter_config.json",
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="a",
        tokenizer_name_or_path="owner/evil",
    )
    assert "prompt_tuning_init" in refused(made, capsys)


def test_a_pickle_next_to_safetensors_and_another_base_are_not_followed(
    home: Path,
    tmp_path: Path,
    attack: Attack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    import socket

    def connected(*_: object) -> None:
        raise AssertionError("somebody was asked")

    made = copied(home / "runs" / "lora", tmp_path / "stranger")
    adapter = made / "adapter"
    change_json(made / "run.json", weights=None)
    change_json(adapter / "adapter_config.json", base_model_name_or_path="owner/evil", revision="x")
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (adapter / name).write_bytes(attack.pickled)
    monkeypatch.setattr(socket.socket, "connect", connected)
    monkeypatch.setattr(socket, "getaddrinfo", connected)
    for command in ("generate", "eval", "merge"):
        rest = ["a"] if command == "generate" else []
        assert run([command, str(made), *rest]) == 0, capsys.readouterr().err
    assert not attack.succeeded()
    observed("base_model_name_or_path elsewhere, 3 pickles next to it: not followed, not opened")


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_a_full_run_with_a_pickle_for_weights_is_refused(
    command: str,
    home: Path,
    tmp_path: Path,
    tiny_model: Path,
    attack: Attack,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = home / "runs" / "full"
    if not made.is_dir():
        sections: dict[str, Any] = {"method": {"mode": "full"}, "training": TRAINING}
        assert run(["train", str(save_recipe(home, tiny_model, "full", **sections))]) == 0
    made = copied(made, tmp_path / "stranger")
    change_json(made / "run.json", weights=None)
    (made / "model" / "model.safetensors").unlink()
    (made / "model" / "pytorch_model.bin").write_bytes(attack.pickled)
    capsys.readouterr()
    assert run([command, str(made), *(["a"] if command == "generate" else ["--no-base"])]) == 1
    assert "its weights are pickles (pytorch_model.bin)" in capsys.readouterr().err
    assert not attack.succeeded()
