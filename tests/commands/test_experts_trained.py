"""Mixtures of experts through all commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ftcli.cli import run
from tests.commands.test_training import adapter_digest, stop_at, train
from tests.conftest import save_tiny_model

EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2, "head_dim": 16}
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "intermediate_size": 64},
}
TRAINING = {"max_steps": 8, "batch_size": 4, "eval_steps": 4, "learning_rate": "1e-2"}


@pytest.fixture
def mixture(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """A tiny model as a recipe names it."""
    return lambda kind: {
        "id": str(save_tiny_model(tmp_path / kind, kind, **EXPERTS | MIXTURES[kind]))
    }


@pytest.mark.parametrize(
    ("kind", "mode", "experts"),
    [
        ("gpt_oss", "qlora", True),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("qwen3_moe", "lora", False),
                ("qwen3_moe", "qlora", True),
                ("qwen3_moe", "lora", True),
                ("qwen3_moe", "qlora", False),
                ("gpt_oss", "lora", True),
                ("gpt_oss", "qlora", False),
            )
        ),
    ],
)
def test_the_whole_path(
    kind: str,
    mode: str,
    experts: bool,
    mixture: Callable[[str], dict[str, str]],
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    method = {"mode": mode, "rank": 4, "experts": experts}
    recipe = write_recipe(model=mixture(kind), method=method, training=TRAINING)
    found: dict[str, Any] = {}
    for command, *rest in (["train"], ["eval"], ["generate", "Product: kettle"], ["merge"]):
        capsys.readouterr()
        assert run([command, str(recipe), *rest, "--json"]) == 0, capsys.readouterr().err
        found[command] = json.loads(capsys.readouterr().out)
    assert found["train"]["eval_loss"] < found["train"]["first_eval_loss"]
    assert found["eval"]["tuned"]["loss"] < found["eval"]["base"]["loss"]
    assert found["merge"]["verdict"] == "pass"
    adapter = load_file(Path(found["train"]["run_dir"]) / "adapter" / "adapter_model.safetensors")
    assert any(".experts." in name for name in adapter) is experts
    assert not any(".gate." in name or ".router." in name for name in adapter)
    assert all(weight.any() for weight in adapter.values())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode"), [("gpt_oss", "qlora"), ("qwen3_moe", "lora")])
def test_a_stopped_run_resumes_to_the_same_weights_with_and_without_checkpointing(
    kind: str,
    mode: str,
    mixture: Callable[[str], dict[str, str]],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"model": mixture(kind), "method": {"mode": mode, "rank": 4, "experts": True}}
    training = {"max_steps": 4, "batch_size": 4, "eval_steps": 2, "micro_batch_size": 2}
    assert train(write_recipe("whole", training=training, **keys)) == 0
    saving = training | {"gradient_checkpointing": True}
    stopped = write_recipe("stopped", training=saving, **keys)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(stopped) == 130
    assert train(stopped) == 0
    runs = tmp_path / "runs"
    assert adapter_digest(runs / "stopped") == adapter_digest(runs / "whole")
