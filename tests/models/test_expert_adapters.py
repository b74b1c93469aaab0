"""LoRA on mixtures of experts: what it reaches, and its file, which stays PEFT's."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from ftcli.errors import ModelError
from ftcli.kernels.expert_stacks import expert_stacks
from ftcli.kernels.experts import use_own_experts
from ftcli.models.adapters import WEIGHTS, add_adapter, open_adapter, save_weights
from ftcli.models.methods import attach, rewritten
from ftcli.models.targets import linear_names
from tests.experts import IDS, MIXTURES, REPLACEABLE, in_4_bits, mixture, through
from tests.tiers import tiers
from tests.tiny_models import llama, logits, lora, shake

ROUTERS = {"llama4_text": "feed_forward.router", "granitemoehybrid": "router.layer"}


def adapted_by(model: PreTrainedModel, **keys: Any) -> Any:
    use_own_experts(model)
    adapted = attach(model, lora(**keys), seed=1)
    shake(adapted)
    return adapted


@pytest.mark.parametrize("kind", tiers(MIXTURES, *list(MIXTURES)[::3]))
def test_each_linear_layer_but_the_router_has_an_adapter(kind: str) -> None:
    base = mixture(kind)
    router = ROUTERS.get(kind, "nothing")
    wanted = {
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear)
        and name != "lm_head"
        and not name.endswith((router, "mamba.out_proj"))  # a kernel reads that one's weight
    }
    adapted = adapted_by(base)
    layers = {n: m for n, m in adapted.named_modules() if isinstance(m, LoraLayer)}
    assert {name.removeprefix("base_model.model.") for name in layers} == wanted
    assert not any(isinstance(layer, ParamWrapper) for layer in layers.values())
    if "shared" in str(base):
        assert any("shared" in name for name in layers)
    found = through(adapted)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(wanted)
    assert all(found[name].abs().max() > 0 for name in trained)


@pytest.mark.parametrize("kind", tiers(REPLACEABLE, *REPLACEABLE[::3]))
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_opened_exactly_and_by_plain_peft_too(
    kind: str, packed: bool, tmp_path: Path
) -> None:
    model, plain = in_4_bits(mixture(kind)) if packed else (mixture(kind), mixture(kind))
    other, of_peft = deepcopy(plain), deepcopy(plain)
    again = in_4_bits(mixture(kind))[0] if packed else mixture(kind)
    pattern = {"o_proj": 2, ".*down_proj": 3}
    adapted = adapted_by(model, experts=True, rank_pattern=pattern)
    stacks = [m for m in adapted.modules() if isinstance(m, ParamWrapper)]
    assert len(stacks) == len(expert_stacks(plain))
    assert {layer.r["default"] for layer in stacks} == {4, 3}
    save_weights(adapted, tmp_path)
    use_own_experts(again)
    assert torch.equal(logits(open_adapter(again, tmp_path), IDS), logits(adapted, IDS))
    use_own_experts(other)
    opened = open_adapter(other, tmp_path)
    assert_close(logits(opened, IDS), logits(adapted, IDS), rtol=0, atol=1e-4)
    theirs = PeftModel.from_pretrained(of_peft, tmp_path)
    assert_close(logits(theirs, IDS), logits(adapted, IDS), rtol=0, atol=1e-4)
    assert len(load_file(tmp_path / WEIGHTS)) == sum(
        2 * isinstance(module, LoraLayer) for module in theirs.modules()
    )


def test_layers_of_a_delta_net_have_all_their_adapters() -> None:
    """It calls its `out_proj`."""
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
    delta = mixture("qwen3_next", **sizes, layer_types=["linear_attention", "full_attention"])
    assert "model.layers.0.linear_attn.out_proj" in linear_names(delta)


@pytest.mark.slow
def test_a_projection_whose_weight_is_read_gets_no_adapter() -> None:
    """Jamba's kernels read that of `dt_proj`; it scans token by token."""
    jamba = mixture(
        "jamba", mamba_d_state=8, mamba_dt_rank=4, attn_layer_period=2, attn_layer_offset=1
    )
    names = {name.rsplit(".", 1)[-1] for name in linear_names(jamba) if ".mamba." in name}
    assert names == {"in_proj", "x_proj", "out_proj"}


def test_peft_would_rewrite_the_names_of_shared_experts_and_dense_layers() -> None:
    """If this fails, PEFT has changed: `targets_as_named` may have no purpose any more."""
    model = mixture("deepseek_v3")
    shared, dense = "model.layers.1.mlp.shared_experts.up_proj", "model.layers.0.mlp.down_proj"
    assert rewritten(model, {shared, dense, "q_a_proj"}) == {shared, dense}
    assert rewritten(mixture("granitemoehybrid"), {"gate_proj", "down_proj"}) == set()


def test_each_factor_of_an_expert_learns() -> None:
    found = through(adapted_by(in_4_bits(mixture("qwen3_moe"))[0], experts=True))
    factors = {name: grad for name, grad in found.items() if ".experts." in name}
    assert len(factors) == 8 and all(grad.abs().max() > 0 for grad in factors.values())


@pytest.mark.parametrize("experts", [(True, True), (False, True), (True, False)])
def test_two_adapters_share_one_base_in_4_bits(experts: tuple[bool, bool], tmp_path: Path) -> None:
    """Each answers as alone."""
    alone = []
    for name, with_experts in zip(("first", "second"), experts, strict=True):
        model = in_4_bits(mixture("deepseek_v3"))[0]
        use_own_experts(model)
        adapted = attach(model, lora(experts=with_experts), seed=len(alone))
        shake(adapted)
        save_weights(adapted, tmp_path / name)
        alone.append(logits(adapted, IDS))
    base = in_4_bits(mixture("deepseek_v3"))[0]
    use_own_experts(base)
    both: Any = open_adapter(base, tmp_path / "first")
    add_adapter(both, tmp_path / "second", "other")
    both.set_adapter("other", inference_mode=True)
    assert torch.equal(logits(both, IDS), alone[1])
    both.set_adapter("default", inference_mode=True)
    assert torch.equal(logits(both, IDS), alone[0])
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("keys", [{"dora": True}, {"dropout": 0.1}])
def test_what_experts_cannot_take_is_refused_with_the_recipe(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"remove method.{next(iter(keys))}"):
        lora(experts=True, **keys)
    lora(**keys)


def test_only_experts_of_the_chosen_layers_are_adapted() -> None:
    adapted = attach(mixture("qwen3_moe"), lora(experts=True, layers=[1]), seed=0)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any("experts" in name for name in names) and all(".layers.1." in n for n in names)
    with pytest.raises(ModelError, match="layers 0 have no experts"):  # the first is dense
        attach(mixture("deepseek_v3"), lora(experts=True, layers=[0]), seed=0)


def test_a_model_without_experts_has_none_to_adapt() -> None:
    with pytest.raises(ModelError, match="no mixture of experts"):
        attach(llama(), lora(experts=True), seed=0)
    with pytest.raises(ModelError, match="in its own way"):
        attach(mixture("llama4_text"), lora(experts=True), seed=0)
