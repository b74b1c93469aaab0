"""Mixtures of experts: merged, saved and read back, each equals base + adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor
from transformers import PreTrainedModel

from ftcli.config.recipe import Lora, LoraKeys, Model, Qlora
from ftcli.console import Terminal
from ftcli.export import merged_model
from ftcli.export.merged_model import (
    Nf4Config,
    four_bit_layers,
    layers_to_merge,
    merge_adapter,
    nf4_round_trip,
)
from ftcli.export.parity import parity
from ftcli.export.verdict import Exactness, exactness_of
from ftcli.kernels.expert_stacks import expert_stacks
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.load import load_base
from ftcli.models.methods import attach, quantization
from ftcli.models.virtual_tokens import causal_model
from tests.experts import mixture
from tests.export.test_merged_model import said
from tests.tiers import tiers
from tests.tiny_models import shake

CPU = torch.device("cpu")
KINDS = ["qwen3_moe", "gpt_oss", "deepseek_v3", "nemotron_h"]
LORA = Lora(mode="lora", rank=4, experts=True)
QLORA = Qlora(mode="qlora", rank=4, experts=True)


def opened(folder: Path, method: LoraKeys | None = None) -> PreTrainedModel:
    """As `ftcli` loads it: in 4 bits where the method says so."""
    return load_base(
        str(folder),
        Model(id=str(folder)),
        dtype=torch.float32,
        attention="eager",
        device=CPU,
        quantization=None if method is None else quantization(method, torch.float32),
    )


def certificate(kind: str, method: LoraKeys, folder: Path) -> tuple[Exactness, Exactness]:
    """Before and after writing; trained, as it were, merged, saved and read back."""
    mixture(kind).save_pretrained(folder / "base")
    trained: Any = attach(opened(folder / "base", method), method, seed=0)
    shake(trained)
    save_weights(trained, folder / "adapter")
    arithmetic = torch.float64 if isinstance(method, Lora) else torch.float32
    reference = said(trained, arithmetic)
    nf4 = None
    if isinstance(method, Qlora):
        nf4 = Nf4Config(four_bit_layers(trained), True, torch.float32, CPU)
    adapted: Any = open_adapter(opened(folder / "base"), folder / "adapter")
    assert parity(said(opened(folder / "base"), arithmetic), reference).kl > 0.05
    groups = merged_model.merged_groups(adapted, arithmetic, None, nf4)
    merged = said(adapted, arithmetic, groups)
    merge_adapter(adapted, torch.float32, nf4, Terminal()).save_pretrained(folder / "merged")
    alone = said(opened(folder / "merged"), arithmetic)
    compared_in = merged_model.dtype_name(arithmetic)
    found = parity(reference, merged), parity(merged, alone)
    return exactness_of(found[0], compared_in), exactness_of(found[1], compared_in)


@pytest.mark.parametrize(
    ("kind", "method"),
    tiers(
        [
            *((kind, QLORA) for kind in KINDS),
            *((kind, LORA) for kind in KINDS if kind != "nemotron_h"),  # its layers take no fp64
        ],
        ("gpt_oss", QLORA),
        ("qwen3_moe", LORA),
    ),
)
def test_adapted_experts_are_merged(kind: str, method: LoraKeys, tmp_path: Path) -> None:
    exact, written = certificate(kind, method, tmp_path)
    assert exact.passes and written.passes, (exact, written)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_experts_are_rounded_as_in_training(kind: str, tmp_path: Path) -> None:
    exact, written = certificate(kind, Qlora(mode="qlora", rank=4), tmp_path)
    assert exact.passes and written.passes, (exact, written)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_rounded_in_the_same_blocks(kind: str, tmp_path: Path) -> None:
    mixture(kind).save_pretrained(tmp_path)
    packed, plain = opened(tmp_path, QLORA), opened(tmp_path)
    nf4 = Nf4Config(four_bit_layers(packed), True, torch.float32, CPU)
    names = {stack.full_name for stack in expert_stacks(plain)}
    assert names < nf4.layers == {name for name, _ in layers_to_merge(plain, nf4)}  # type: ignore[arg-type]
    for ours, theirs in zip(expert_stacks(plain), expert_stacks(packed), strict=True):
        found = nf4_round_trip(getattr(ours.module, ours.name).data, nf4)
        assert torch.equal(found, getattr(theirs.module, theirs.name))


# Injected faults


def lose_one_stack(patched: pytest.MonkeyPatch) -> None:
    whole = merged_model.layers_to_merge

    def without(*found: Any) -> Any:
        layers = whole(*found)
        lost = next(name for name, layer in layers if isinstance(layer, ParamWrapper))
        return [each for each in layers if each[0] != lost]

    patched.setattr(merged_model, "layers_to_merge", without)


def change_updates(patched: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    whole = ParamWrapper.get_delta_weight
    patched.setattr(ParamWrapper, "get_delta_weight", lambda *inputs: change(whole(*inputs)))


def scale_twice(patched: pytest.MonkeyPatch) -> None:
    change_updates(patched, lambda update: 2 * update)


def lose_one_expert(patched: pytest.MonkeyPatch) -> None:
    def without(update: Tensor) -> Tensor:
        update[1] = 0
        return update

    change_updates(patched, without)


def exchange_experts(patched: pytest.MonkeyPatch) -> None:
    change_updates(patched, lambda update: update.roll(1, dims=0))


def move_router(patched: pytest.MonkeyPatch) -> None:
    whole = merged_model.merged_groups

    def moved(adapted: Any, *others: Any) -> Any:
        name = next(n for n, _ in causal_model(adapted).named_parameters() if "gate.weight" in n)
        causal_model(adapted).get_parameter(name).data[0] += 0.05
        return whole(adapted, *others)

    patched.setattr(merged_model, "merged_groups", moved)


@pytest.mark.parametrize("method", tiers([LORA, QLORA], LORA))
@pytest.mark.parametrize(
    "inject", [lose_one_stack, scale_twice, lose_one_expert, exchange_experts, move_router]
)
def test_each_injected_fault_is_caught(
    inject: Callable[[pytest.MonkeyPatch], None],
    method: LoraKeys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inject(monkeypatch)
    exact, _ = certificate("qwen3_moe", method, tmp_path)
    assert not exact.passes, exact
