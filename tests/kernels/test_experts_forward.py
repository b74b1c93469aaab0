"""Our forward of experts against those of transformers and PEFT on plain 16- or 32-bit stacks."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from ftcli.kernels.expert_stacks import expert_stacks, plain_stacks
from ftcli.kernels.experts import NAME, use_own_experts, use_own_updates
from tests.experts import IDS, REPLACEABLE, in_4_bits, mixture, through
from tests.tiny_models import shake


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], most: float = 1e-5) -> None:
    """Each within `most` of the largest number of its tensor."""
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        scale = max(expected.abs().max().item(), 1e-6)
        assert_close(found[name] / scale, expected / scale, rtol=0, atol=most, msg=name)


def stock(model: PreTrainedModel) -> PreTrainedModel:
    """With transformers' loop over the experts."""
    model.set_experts_implementation("eager")
    return model.requires_grad_(False)


def own(model: PreTrainedModel) -> PreTrainedModel:
    assert use_own_experts(model) > 0
    return model.requires_grad_(False)


def with_lora(model: PreTrainedModel, rank: int = 4) -> Any:
    """LoRA on all stacks, with numbers in B."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=3 * rank,
        target_modules=[],
        target_parameters=[stack.full_name for stack in expert_stacks(model)],
    )
    torch.manual_seed(1)
    with plain_stacks(model):
        adapted = get_peft_model(model, config)
    shake(adapted)
    return adapted


@pytest.mark.parametrize("kind", REPLACEABLE)
def test_frozen_experts_are_transformers_own(kind: str) -> None:
    assert_same(through(own(mixture(kind))), through(stock(mixture(kind))))


@pytest.mark.parametrize("kind", REPLACEABLE)
def test_updates_of_4_bit_experts_are_peft_s_on_the_same_numbers(kind: str) -> None:
    model, plain = in_4_bits(mixture(kind))
    stacks = len(expert_stacks(plain))
    expected = through(with_lora(stock(plain)))
    assert sum("lora_" in name for name in expected) == 2 * stacks
    adapted = with_lora(own(model))
    assert use_own_updates(adapted) > 0
    first = through(adapted)
    assert_same(first, expected)
    assert_same(through(adapted), first)


@pytest.mark.parametrize("kind", REPLACEABLE)
def test_updates_keep_no_activations_of_their_own(kind: str) -> None:
    """So that the memory of frozen experts is that of adapted ones."""

    def kept(model: PreTrainedModel) -> int:
        weights = {id(each.untyped_storage()) for each in model.parameters()}
        found: dict[int, Any] = {}

        def save(tensor: Tensor) -> Tensor:
            found[id(tensor.untyped_storage())] = tensor.untyped_storage()
            return tensor

        embedded = model.get_input_embeddings().register_forward_hook(
            lambda _, __, output: output.requires_grad_()
        )
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            logits = model(input_ids=IDS, use_cache=False).logits
        embedded.remove()
        assert logits.requires_grad
        return sum(each.nbytes() for key, each in found.items() if key not in weights)

    adapted = with_lora(own(mixture(kind)))
    assert use_own_updates(adapted) > 0
    assert kept(adapted) == kept(own(mixture(kind)))


@pytest.mark.parametrize(("rank", "dtype"), [(3, torch.float64), (3, torch.float32)])
def test_ranks_and_types_that_torch_does_not_group(rank: int, dtype: torch.dtype) -> None:
    plain = mixture("gpt_oss").to(dtype)
    model = deepcopy(plain)
    if dtype == torch.float64:  # PEFT's adapters stay in fp32, its experts do not
        expected = through(with_lora(stock(plain), rank).double())
        adapted = with_lora(own(model), rank).double()
    else:
        expected = through(with_lora(stock(plain), rank))
        adapted = with_lora(own(model), rank)
    use_own_updates(adapted)
    assert_same(through(adapted), expected)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_16_bits_under_autocast_are_as_exact_as_transformers_own(kind: str) -> None:
    exact = through(stock(mixture(kind).bfloat16().float()))
    with torch.autocast("cpu", torch.bfloat16):
        their = through(stock(mixture(kind).bfloat16()))
        our = through(own(mixture(kind).bfloat16()))
    for name, true in exact.items():
        wrong, theirs = ((it[name].float() - true).norm() for it in (our, their))
        assert wrong < 1.2 * theirs, name


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_updates_in_16_bits_are_as_exact_as_peft_s(kind: str) -> None:
    """Of one layer, whose tokens go to the same experts in each type."""
    torch.manual_seed(3)
    hidden, upstream = torch.randn(300, 64).bfloat16(), torch.randn(300, 64)
    routed = torch.rand(300, 4).bfloat16().topk(2)

    def layer(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
        adapted = with_lora(model, rank=8)
        if model.config._experts_implementation == NAME:
            use_own_updates(adapted)
        experts = adapted.get_submodule("base_model.model.model.layers.0.mlp.experts")
        leaves = [each.to(dtype).requires_grad_() for each in (hidden.clone(), routed.values)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = experts(leaves[0], routed.indices, leaves[1])
        (output.float() * upstream).sum().backward()
        factors = {n: p.grad for n, p in experts.named_parameters() if p.requires_grad}
        return {"output": output, "hidden": leaves[0].grad, "weights": leaves[1].grad, **factors}

    exact = layer(stock(mixture(kind).bfloat16().float()), torch.float32)
    their = layer(stock(mixture(kind).bfloat16()), torch.bfloat16)
    our = layer(own(mixture(kind).bfloat16()), torch.bfloat16)
    for name, true in exact.items():
        wrong, theirs = ((it[name].float() - true).norm() for it in (our, their))
        assert wrong < 1.2 * theirs, name


def test_an_adapter_that_is_off_or_merged_is_not_added() -> None:
    base = mixture("qwen3_moe")
    before = through(own(deepcopy(base)))["logits"]
    adapted = with_lora(own(base))
    use_own_updates(adapted)
    with_update = through(adapted)["logits"]
    with adapted.disable_adapter():
        assert torch.equal(adapted(input_ids=IDS).logits, before)
    adapted.merge_adapter()
    assert_close(adapted(input_ids=IDS).logits, with_update, rtol=0, atol=1e-5)
    assert (with_update - before).abs().max() > 0.01


def test_checkpointing_changes_nothing() -> None:
    def gradients(*, checkpointing: bool) -> dict[str, Tensor]:
        model, _ = in_4_bits(mixture("gpt_oss"))
        adapted = with_lora(own(model)).train()
        use_own_updates(adapted)
        if checkpointing:
            adapted.gradient_checkpointing_enable()
        return through(adapted)

    assert_same(gradients(checkpointing=True), gradients(checkpointing=False), most=0)


def test_stacks_that_are_trained_keep_transformers_function() -> None:
    model, reference = mixture("qwen3_moe"), mixture("qwen3_moe")
    use_own_experts(model)
    expected, found = through(reference), through(model)
    assert any("gate_up_proj" in name for name in found)
    assert_same(found, expected, most=0)


@pytest.mark.parametrize("lora", [False, True])
def test_bytes_that_stay_for_backward(lora: bool) -> None:
    """One product of each routed row; neither a dequantised stack nor a row of an input."""
    model, _ = in_4_bits(mixture("qwen3_moe"))
    model = own(model)
    experts = model.get_submodule("model.layers.0.mlp.experts")
    if lora:
        adapted = with_lora(model)
        use_own_updates(adapted)
        experts = adapted.get_submodule("base_model.model.model.layers.0.mlp.experts")
    tokens, top_k, width, inner = 30, 2, 64, 128
    hidden = torch.randn(tokens, width, requires_grad=True)
    scores = torch.rand(tokens, 4).topk(top_k)
    kept: dict[int, Tensor] = {}
    owned = {each.data_ptr() for each in experts.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        experts(hidden, scores.indices, scores.values)
    rows = tokens * top_k
    assert sum(it.nbytes for it in kept.values() if it.data_ptr() not in owned) == (
        4 * tokens * width  # hidden, which others keep too
        + 4 * rows  # weights of the router
        + 4 * rows * inner
        + 2 * 8 * rows
        + 4 * 4  # order
    )
