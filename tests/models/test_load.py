"""A base is loaded completely, or the missing weight is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ftcli.config.recipe import Model, Qlora
from ftcli.errors import ModelError
from ftcli.models.load import load_base
from ftcli.models.methods import quantization
from tests.conftest import save_tiny_model

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
NAME = "model.layers.0.self_attn.q_proj.weight"


def load(folder: Path, **more: Any) -> Any:
    return load_base(
        str(folder),
        Model(id=str(folder)),
        dtype=torch.float32,
        attention="sdpa",
        device=torch.device("cpu"),
        **more,
    )


def change(folder: Path, **tensors: Any) -> None:
    """Change tensors by name; None removes one."""
    file = folder / "model.safetensors"
    held = load_file(file) | tensors
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox", "mixtral"])
def test_a_model_as_transformers_saves_it_is_whole(
    model_type: str, tied: bool, tmp_path: Path
) -> None:
    """Experts are saved one by one and loaded as one tensor."""
    keys = EXPERTS if model_type == "mixtral" else {}
    load(save_tiny_model(tmp_path / "model", model_type, tie_word_embeddings=tied, **keys))


@pytest.mark.parametrize("in_4_bits", [False, True])
def test_a_missing_and_a_misshapen_tensor_are_named(in_4_bits: bool, tmp_path: Path) -> None:
    """transformers would initialise them randomly."""
    method = Qlora(mode="qlora")
    more = {"quantization": quantization(method, torch.float32)} if in_4_bits else {}
    folder = save_tiny_model(tmp_path / "model")
    whole = load_file(folder / "model.safetensors")[NAME]
    change(folder, **{NAME: whole[:32].clone()})
    with pytest.raises(ModelError, match=rf"its {NAME} is 32 × 64, but 64 × 64 by its config.json"):
        load(folder, **more)
    change(folder, **{NAME: None})
    with pytest.raises(ModelError, match=rf"1 weights are in none of its files, {NAME} first"):
        load(folder, **more)


def test_a_missing_head_is_named_where_it_is_not_tied(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    change(folder, **{"lm_head.weight": None})
    with pytest.raises(ModelError, match=r"lm_head\.weight first; they would be random"):
        load(folder)
