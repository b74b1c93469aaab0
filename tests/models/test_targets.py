"""Which layers are adapted and quantised, where names alone do not say it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from ftcli.errors import FtcliError, ModelError
from ftcli.models.architectures.find import architecture_of_config
from ftcli.models.methods import attach
from ftcli.training.checkpoint import load_weights
from scripts.tiny_jobs import tiny_config_of
from tests.tiny_models import llama, lora


def test_a_layer_to_whose_weight_s_type_inputs_are_cast_stays_out_of_4_bits() -> None:
    """Its weight would be bytes there, and so would its inputs be."""
    found = architecture_of_config(tiny_config_of("deepseek_v32"))
    indexer = "model.layers.0.self_attn.indexer.weights_proj"
    assert indexer not in dict(found.linear_names()), "top-k passes no gradient on"
    assert re.match(found.unquantised_pattern(), indexer)
    assert not re.match(found.unquantised_pattern(), "model.layers.0.self_attn.o_proj")


def test_a_model_without_linear_layers_takes_full_training_only() -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=4, **ids))
    with pytest.raises(ModelError, match="take method"):
        attach(model, lora(), 1)


def test_a_full_checkpoint_without_a_weight_is_refused(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path, save_original_format=False)
    load_weights(model, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(FtcliError, match="norm") as caught:
        load_weights(model, tmp_path)
    assert caught.value.code == "checkpoint_broken"
