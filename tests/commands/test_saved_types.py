"""Type of saved weights: a full model in that of its base's files, adapters in fp32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.commands.test_end_to_end import LONGEST, METHODS
from tests.conftest import save_tiny_model


@pytest.fixture(scope="module")
def base_in_16_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as most of the hub's are stored."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path_factory.mktemp("stored") / "tiny", head_dim=16)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    "mode",
    ["full", "lora", *(pytest.param(m, marks=pytest.mark.slow) for m in LONGEST)],
)
def test_a_base_in_16_bits_gives_a_model_in_16_bits_and_adapters_in_fp32(
    mode: str, write_recipe: Callable[..., Path], base_in_16_bits: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    recipe = write_recipe(
        model={"id": str(base_in_16_bits)},
        method=METHODS[mode],
        training={"max_steps": 1, "batch_size": 4, "warmup_ratio": 0, "precision": "bf16"},
    )
    assert run(["train", str(recipe)]) == 0
    folder = tmp_path / "runs" / "tiny"
    file = "model/model.safetensors" if mode == "full" else "adapter/adapter_model.safetensors"
    wanted = torch.bfloat16 if mode == "full" else torch.float32
    saved = load_file(folder / file)
    assert {tensor.dtype for tensor in saved.values()} == {wanted}
    result = json.loads((folder / "run.json").read_text())["result"]
    assert result["saved_bytes"] == (folder / file).stat().st_size
    if mode == "full":
        stored = load_file(base_in_16_bits / "model.safetensors")
        assert saved.keys() == stored.keys()
        assert any(not saved[name].equal(stored[name]) for name in saved)
