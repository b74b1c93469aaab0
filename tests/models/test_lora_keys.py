"""Other keys of LoRA: scale, ranks, layers, DoRA, and modules trained in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from ftcli.config.recipe import Lora
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.methods import attach
from tests.tiers import tiers
from tests.tiny_models import (
    IDS,
    LINEAR,
    falcon,
    gpt_neox,
    llama,
    logits,
    lora,
    loss_of,
    phi3,
    shake,
)


def layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def train(model: torch.nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, IDS).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("keys", "scale"), [({}, 6 / 4), ({"rslora": True}, 6 / 2), ({"dora": True}, 6 / 4)]
)
def test_the_scale_of_the_update(keys: dict[str, bool], scale: float) -> None:
    adapted = attach(llama(), lora(rank=4, alpha=6, **keys), seed=0)
    assert {layer.scaling["default"] for layer in layers(adapted).values()} == {scale}


def test_some_layers_and_other_ranks() -> None:
    method = lora(["q_proj", "down_proj"], rank=4, layers=[1], rank_pattern={"down_proj": 8})
    found = layers(attach(llama(), method, seed=0))
    ranks = {name.split("layers.")[1]: layer.r["default"] for name, layer in found.items()}
    assert ranks == {"1.self_attn.q_proj": 4, "1.mlp.down_proj": 8}


def test_some_layers_of_all_linear_ones() -> None:
    found = layers(attach(llama(), lora(layers=[1]), seed=0))
    assert {name.split("layers.")[1].split(".")[0] for name in found} == {"1"}
    assert {name.rsplit(".", 1)[-1] for name in found} == set(LINEAR)


@pytest.mark.parametrize(
    "keys", [{}, {"dora": True}, {"rslora": True}, {"modules_to_save": ["lm_head"]}]
)
def test_the_base_is_never_touched(keys: dict[str, object]) -> None:
    adapted = attach(llama(), lora(**keys), seed=0)  # type: ignore[arg-type]
    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    start = logits(adapted)
    train(adapted)
    now = dict(adapted.named_parameters())
    assert frozen and all(torch.equal(now[name], weight) for name, weight in frozen.items())
    assert not torch.equal(logits(adapted), start)


def test_dora_begins_at_the_base_up_to_rounding() -> None:
    """It divides by the norm that it multiplies with."""
    base = llama()
    before = logits(base)
    assert torch.allclose(logits(attach(base, lora(dora=True), seed=0)), before, atol=1e-5)


def test_layers_and_modules_of_fused_matrices() -> None:
    method = lora(layers=[1], modules_to_save=["lm_head"])
    adapted = attach(phi3(tie_word_embeddings=False), method, seed=0)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    reached = {name.removeprefix("base_model.model.model.") for name in layers(adapted)}
    wanted = {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}
    assert reached == {f"layers.1.{name}" for name in wanted}
    assert {name for name in trained if "lora_" not in name} == {
        "base_model.model.lm_head.modules_to_save.default.weight"
    }


@pytest.mark.parametrize("build", tiers([llama, gpt_neox, falcon], llama))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_modules_are_trained_whole_in_fp32_and_found_again(
    build: Callable[..., PreTrainedModel], tied: bool, names: list[str], tmp_path: Path
) -> None:
    """On tied embeddings there is one matrix, whichever end is named."""
    base = build(tie_word_embeddings=tied).to(torch.bfloat16)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    method = Lora.model_validate({"mode": "lora", "rank": 2, "modules_to_save": names})
    adapted = attach(base, method, seed=0)
    copies = {
        p.data_ptr(): p
        for name, p in adapted.named_parameters()
        if p.requires_grad and "lora_" not in name
    }
    assert len(copies) == (1 if tied else len(names))
    assert {copy.dtype for copy in copies.values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        train(adapted)
        found = logits(adapted)
    shake(adapted)
    save_weights(adapted, tmp_path)
    again = build(tie_word_embeddings=tied).to(torch.bfloat16)
    again.load_state_dict(weights)
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(adapted)
        assert torch.equal(logits(open_adapter(again, tmp_path)), expected)
    assert not torch.equal(found, expected)
    assert logits(adapted).isfinite().all(), "in use there is no autocast"
    if tied:
        inside = adapted.get_base_model()
        ends = (inside.get_input_embeddings().weight, inside.get_output_embeddings().weight)
        assert ends[0].data_ptr() == ends[1].data_ptr()
