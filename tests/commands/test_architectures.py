"""Models that differ where adapters stand: the whole path, or a refusal before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from tests.commands.test_end_to_end import METHODS
from tests.conftest import save_tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "tied embeddings": {"model_type": "llama"},
    "fused queries and gates": {"model_type": "phi3", "tie_word_embeddings": False},
    "biases": {"model_type": "qwen2"},
    "linear layers of its own class": {"model_type": "falcon"},
}


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        ("linear layers of its own class", "qlora"),
        *(
            pytest.param(family, mode, marks=pytest.mark.slow)
            for family in FAMILIES
            for mode in ("full", "lora", "qlora", "bottleneck")
        ),
    ],
)
def test_the_whole_path(
    family: str,
    mode: str,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_tiny_model(tmp_path / "model", **FAMILIES[family])
    recipe = write_recipe(
        model={"id": str(model)},
        method=METHODS[mode],
        training={"max_steps": 4, "batch_size": 4, "eval_steps": 4, "learning_rate": "1e-2"},
    )
    commands: list[list[str]] = [["train"], ["eval"], ["generate", "Product: kettle"]]
    if mode != "bottleneck":
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


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "tied"), [("gpt_neox", False), ("falcon", True)])
def test_embeddings_with_a_name_of_their_own_are_trained(
    model_type: str,
    tied: bool,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The key's words are those of most models; what is trained is what was estimated."""
    model = save_tiny_model(tmp_path / "model", model_type, tie_word_embeddings=tied)
    recipe = write_recipe(
        model={"id": str(model)},
        method={"mode": "lora", "rank": 4, "modules_to_save": ["embed_tokens"]},
        training={"max_steps": 2, "batch_size": 4, "learning_rate": "1e-2"},
    )
    found = {}
    for command in ("estimate-vram", "train", "eval", "merge"):
        assert run([command, str(recipe), "--json"]) == 0, capsys.readouterr().err
        found[command] = json.loads(capsys.readouterr().out)
    trained = found["train"]["trainable_parameters"]
    assert trained == found["estimate-vram"]["trainable_parameters"]
    config = json.loads((model / "config.json").read_text())
    matrix = config["vocab_size"] * config["hidden_size"]
    assert matrix < trained < 2 * matrix
    assert found["merge"]["verdict"] == "pass"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"method": {"mode": "prefix-tuning"}, "training": {"gradient_checkpointing": True}},
            "training.gradient_checkpointing: keys and values of a prefix are in the cache",
        ),
        (
            {"method": {"mode": "lora", "target_modules": ["q_prj"]}},
            "no linear layer 'q_prj'; did you mean q_proj?",
        ),
        ({"method": {"mode": "lora", "layers": [99]}}, "has no layer 99: they are 0 to 1"),
        (
            {"method": {"mode": "lora", "rank_pattern": {"q_prj": 8}}},
            "no module gets its rank from 'q_prj'; did you mean q_proj?",
        ),
        (
            {"method": {"mode": "lora", "modules_to_save": ["embed_in"]}},
            "method.modules_to_save: item 1: expected embed_tokens or lm_head",
        ),
        (
            {"method": {"mode": "full"}, "training": {"precision": "fp16"}},
            "training.precision: fp16 needs a CUDA GPU",
        ),
    ],
)
def test_what_recipe_and_model_prove_is_refused_before_any_row_is_read(
    sections: dict[str, Any],
    message: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(**sections)
    for flags in ([], ["--dry-run"]):
        assert run(["train", str(recipe), *flags]) in (1, 2)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_gpt2_is_trained_whole_and_takes_no_adapter(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its projections are Conv1D: a refusal before any row is read."""
    keys = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    model = {"id": str(save_tiny_model(tmp_path / "model", "gpt2", **keys))}
    assert run(["train", str(write_recipe(model=model, method=METHODS["lora"]))]) == 2
    assert "model has no linear layers that an adapter could follow" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.arrow"))
    training = {"max_steps": 2, "batch_size": 4}
    recipe = write_recipe(model=model, method=METHODS["full"], training=training)
    assert run(["train", str(recipe)]) == 0, capsys.readouterr().err


def test_a_mixture_of_experts_takes_adapters(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_model(tmp_path / "moe", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    training = {"max_steps": 2, "batch_size": 4}
    for command in ("estimate-vram", "train"):
        recipe = write_recipe(model={"id": str(model)}, method={"mode": "lora"}, training=training)
        assert run([command, str(recipe), "--json"]) == 0, capsys.readouterr().err
        found = json.loads(capsys.readouterr().out)
        assert found["trainable_parameters"] == 2 * 16 * (64 + 64 + 2 * (64 + 32) + 64 + 64)


def test_layers_that_hold_one_weight_are_refused_before_the_first_step(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ftcli.training import building

    load = building.load_base

    def tied(*args: Any, **keys: Any) -> Any:
        base = load(*args, **keys)
        first, second = base.model.layers
        second.mlp.up_proj.weight = first.mlp.up_proj.weight
        return base

    monkeypatch.setattr(building, "load_base", tied)
    recipe = write_recipe(method={"mode": "lora", "target_modules": ["q_proj", "up_proj"]})
    assert run(["train", str(recipe)]) == 2
    error = capsys.readouterr().err
    names = "model.layers.0.mlp.up_proj and model.layers.1.mlp.up_proj"
    assert f"{recipe.name}:6: method.target_modules: {names} share one weight" in error
    assert not list((tmp_path / "runs" / "tiny").glob("checkpoints/*"))
    spared = write_recipe(method={"mode": "lora", "rank": 4, "target_modules": ["q_proj"]})
    assert run(["train", str(spared), "--fresh"]) == 0
