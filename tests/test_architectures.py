"""Models that differ where adapters stand: the whole path, or a refusal before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from tests.conftest import save_tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "tied embeddings": {"model_type": "llama"},
    "fused queries and gates": {"model_type": "phi3", "tie_word_embeddings": False},
    "biases": {"model_type": "qwen2"},
}
MODES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora", "rank": 4},
    "qlora": {"mode": "qlora", "rank": 4},
    "adapter": {"mode": "adapter", "bottleneck": 8},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), **FAMILIES[request.param])


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_path(
    mode: str,
    model: Path,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(
        model={"id": str(model)},
        method=MODES[mode],
        training={"max_steps": 4, "batch_size": 4, "eval_steps": 4, "learning_rate": "1e-2"},
    )
    commands: list[list[str]] = [["train"], ["eval"], ["generate", "Product: kettle"]]
    if mode != "adapter":
        commands.append(["merge"])
    found = {}
    for command, *rest in commands:
        capsys.readouterr()
        assert run([command, str(recipe), *rest, "--json"]) == 0, capsys.readouterr().err
        found[command] = json.loads(capsys.readouterr().out)
    assert found["train"]["eval_loss"] < found["train"]["first_eval_loss"]
    assert found["eval"]["tuned"]["loss"] < found["eval"]["base"]["loss"]
    if mode in ("lora", "qlora"):
        assert found["merge"]["verdict"] == "pass"


@pytest.mark.parametrize("mode", MODES)
def test_gpt2_is_refused_before_any_work(
    mode: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its projections are Conv1D, whose shapes ftcli does not know."""
    keys = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    model = save_tiny_model(tmp_path / "gpt2", "gpt2", **keys)
    recipe = write_recipe(model={"id": str(model)}, method=MODES[mode])
    assert run(["train", str(recipe)]) == 1
    assert "gpt2" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize("mode", ["lora", "qlora", "adapter", "prefix", "prompt"])
def test_a_mixture_of_experts_takes_full_training_only(
    mode: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_tiny_model(tmp_path / "moe", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    recipe = write_recipe(model={"id": str(model)}, method={"mode": mode})
    assert run(["train", str(recipe)]) == 1
    error = capsys.readouterr().err
    assert "mixture of experts" in error and "method.mode: full" in error
    assert not list(tmp_path.rglob("*.arrow"))
