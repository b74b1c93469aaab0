"""Bottleneck adapters: the identity at first, their arithmetic, and their files in plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.special import erf

from ftcli.config.recipe import Bottleneck
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.bottleneck import BottleneckLayer
from ftcli.models.methods import attach, quantization
from tests.tiny_models import IDS, llama, logits, loss_of, qwen2, reload_in_4_bits


def bottleneck(**keys: object) -> Bottleneck:
    return Bottleneck.model_validate({"mode": "bottleneck", "bottleneck": 8, **keys})


def shake(model: torch.nn.Module) -> None:
    """Random values for the last matrix, which is initialised to zero."""
    for name, parameter in model.named_parameters():
        if "bottleneck_up" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def layers(model: torch.nn.Module) -> dict[str, BottleneckLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, BottleneckLayer)}


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_an_adapter_adds_a_small_network_to_the_projection(activation: str) -> None:
    """y = h + W_up f(W_down h + b) + b, in NumPy and float64."""
    adapted = attach(llama(), bottleneck(activation=activation), 1)
    shake(adapted)
    layer = next(iter(layers(adapted).values()))
    x = torch.randn(5, layer.base_layer.in_features)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    w, d, b_d, u, b_u = (
        tensor.detach().double().numpy()
        for tensor in (layer.base_layer.weight, down.weight, down.bias, up.weight, up.bias)
    )
    h = x.double().numpy() @ w.T
    inner = h @ d.T + b_d
    function = {
        "relu": lambda inner: np.maximum(inner, 0),
        "silu": lambda inner: inner / (1 + np.exp(-inner)),
        "gelu": lambda inner: inner * 0.5 * (1 + erf(inner / np.sqrt(2))),
    }[activation]
    expected = h + function(inner) @ u.T + b_u
    found = layer(x).detach().double().numpy()
    assert np.abs(found - expected).max() <= 1e-5
    assert np.abs(found - h).max() > 1e-2


@pytest.mark.parametrize("build", [llama, qwen2])
def test_training_begins_exactly_at_the_base(build) -> None:  # type: ignore[no-untyped-def]
    base = build()
    before = logits(base)
    adapted = attach(base, bottleneck(), 0)
    assert torch.equal(logits(adapted), before)
    shake(adapted)
    assert not torch.equal(logits(adapted), before)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)


@pytest.mark.parametrize(
    ("placement", "ends"),
    [("both", {"o_proj", "down_proj"}), ("attention", {"o_proj"}), ("mlp", {"down_proj"})],
)
def test_where_adapters_stand(placement: str, ends: set[str]) -> None:
    adapted = attach(llama(), bottleneck(placement=placement), 0)
    assert {name.rsplit(".", 1)[-1] for name in layers(adapted)} == ends
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("bottleneck_" in name for name in trained)
    each = 2 * 64 * 8 + 64 + 8
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert count == each * len(ends) * adapted.config.num_hidden_layers


def test_the_folder_is_that_of_any_peft_adapter(tmp_path: Path) -> None:
    base = llama()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = attach(base, bottleneck(), 0)
    shake(adapted)
    save_weights(adapted, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "BOTTLENECK" and config["bottleneck"] == 8
    for open_ in (open_adapter, PeftModel.from_pretrained):
        again = llama()
        again.load_state_dict(weights)
        assert torch.equal(logits(open_(again, tmp_path)), logits(adapted))


def test_a_4_bit_base_takes_adapters_too(tmp_path: Path) -> None:
    method = bottleneck(quantization="nf4")
    base = reload_in_4_bits(llama(), tmp_path, quantization(method, torch.float32))
    before = logits(base)
    adapted = attach(base, method, 0)
    assert torch.equal(logits(adapted), before)
    codes = {n: p.clone() for n, p in adapted.named_parameters() if p.dtype == torch.uint8}
    assert codes
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    first = loss_of(adapted, IDS)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(adapted, IDS).backward()
        optimizer.step()
    assert loss_of(adapted, IDS) < first
    assert all(torch.equal(dict(adapted.named_parameters())[n], code) for n, code in codes.items())
