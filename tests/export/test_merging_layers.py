from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ftcli.config.recipe import Qlora
from ftcli.console import Terminal
from ftcli.errors import ModelError
from ftcli.export.merged_model import (
    Nf4Config,
    add_update,
    four_bit_layers,
    layers_to_merge,
    merge_adapter,
    nf4_round_trip,
    without_adapter,
)
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.methods import attach, quantization
from ftcli.models.targets import shared_weight
from ftcli.models.virtual_tokens import causal_model
from tests.tiny_models import SIZES, llama, logits, lora, phi3, shake

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def in_4_bits(folder: Path, dtype: torch.dtype, *, double: bool = True) -> PreTrainedModel:
    config = quantization(Qlora(mode="qlora", double_quantization=double), dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)


@pytest.mark.parametrize(
    ("build", "dtype", "double"),
    [*((llama, dtype, True) for dtype in TYPES), (phi3, torch.bfloat16, False)],
)
def test_a_layer_is_rounded_as_transformers_quantises_it(
    build: Callable[[], PreTrainedModel], dtype: torch.dtype, double: bool, tmp_path: Path
) -> None:
    build().save_pretrained(tmp_path)
    quantised = in_4_bits(tmp_path, dtype, double=double)
    nf4 = Nf4Config(four_bit_layers(quantised), double, dtype, CPU)
    expected = dict(quantised.dequantize(dtype).named_modules())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    layers = layers_to_merge(plain, nf4)
    assert {name for name, _ in layers} == nf4.layers
    for name, layer in layers:
        found = nf4_round_trip(layer.weight.data.to(dtype), nf4)
        assert found.dtype == dtype
        assert torch.equal(found, expected[name].weight)
        assert not torch.equal(found, layer.weight.data.to(dtype))


def test_the_head_is_not_in_4_bits(tmp_path: Path) -> None:
    llama(tie_word_embeddings=False).save_pretrained(tmp_path)
    names = four_bit_layers(in_4_bits(tmp_path, torch.float32))
    assert len(names) == 2 * 7 and not any("lm_head" in name for name in names)


def test_an_adapter_hides_no_4_bit_layer(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    before = four_bit_layers(in_4_bits(tmp_path, torch.float32))
    method = Qlora(mode="qlora", rank=2, target_modules=["q_proj"])
    adapted = attach(in_4_bits(tmp_path, torch.float32), method, seed=0)
    assert four_bit_layers(adapted) == before


def test_layers_without_an_adapter_are_rounded_too() -> None:
    base = llama()
    whole = {name: parameter.clone() for name, parameter in base.named_parameters()}
    adapted = attach(base, lora(["q_proj"]), seed=0)
    shake(adapted)
    names = frozenset(
        name.replace(".base_layer", "")
        for name, module in causal_model(adapted).named_modules()
        if isinstance(module, nn.Linear) and "proj" in name and "lora" not in name
    )
    nf4 = Nf4Config(names, True, torch.float32, CPU)
    for name, layer in layers_to_merge(adapted, nf4):
        add_update(name, layer, nf4)
    merged = dict(without_adapter(adapted, torch.float32).named_parameters())
    changed = {name for name in merged if not torch.equal(merged[name], whole[name])}
    assert changed == {f"{name}.weight" for name in names} and len(names) == 14


def test_an_update_that_is_no_number_is_named(tmp_path: Path) -> None:
    adapted = attach(llama(), lora(), seed=0)
    shake(adapted)
    layer = causal_model(adapted).model.layers[1].mlp.up_proj
    layer.lora_B["default"].weight.data[0, 0] = float("nan")
    save_weights(adapted, tmp_path)
    opened = open_adapter(llama(), tmp_path)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj: its update is NaN or infinite"):
        for name, module in layers_to_merge(opened, None):
            add_update(name, module, None)


def with_one_block_twice(base: PreTrainedModel) -> PreTrainedModel:
    """Both layers compute with the first one's queries, as Zamba's do with a whole block."""
    first, second = base.model.layers
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight
    return base


@pytest.mark.parametrize("layers", [None, [0]])
def test_layers_that_hold_one_weight_are_not_merged(
    layers: list[int] | None, tmp_path: Path
) -> None:
    """Nor where one of them alone is adapted: a merge would change the other, too."""
    adapted = attach(with_one_block_twice(llama()), lora(layers=layers), seed=0)
    shake(adapted)
    save_weights(adapted, tmp_path)
    opened = open_adapter(with_one_block_twice(llama()), tmp_path)
    before = {name: weight.clone() for name, weight in opened.state_dict().items()}
    with pytest.raises(
        ModelError, match=r"layers\.1\.self_attn\.q_proj share one weight"
    ) as caught:
        merge_adapter(opened, torch.float32, None, Terminal())
    assert caught.value.code == "merge_shared"
    assert all(torch.equal(before[name], weight) for name, weight in opened.state_dict().items())


def test_layers_that_hold_one_weight_and_have_no_adapter_are_merged() -> None:
    adapted = attach(with_one_block_twice(llama()), lora(["k_proj", "down_proj"]), seed=0)
    shake(adapted)
    expected = logits(adapted)
    merged = merge_adapter(adapted, torch.float32, None, Terminal())
    assert torch.allclose(logits(merged), expected, atol=1e-5)


ZAMBA: dict[str, Any] = {
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "mamba_d_state": 8,
    "n_mamba_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ONE_BLOCK = {"layers_block_type": ["mamba", "hybrid", *["mamba"] * 4]}


@pytest.mark.parametrize(
    ("model_type", "keys", "shared"),
    [
        pytest.param(
            "zamba",
            {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
            True,
            marks=pytest.mark.slow,  # it scans token by token
        ),
        (
            "zamba2",
            {"mamba_ngroups": 1, "mamba_headdim": 64, **ONE_BLOCK},
            False,
        ),
    ],
)
def test_a_block_that_runs_in_several_layers_is_found(
    model_type: str, keys: dict[str, Any], shared: bool
) -> None:
    config = AutoConfig.for_model(model_type, **SIZES | ZAMBA | keys)
    adapted = attach(AutoModelForCausalLM.from_config(config), lora(), seed=0)
    found = shared_weight(adapted)
    assert (found is not None) == shared
