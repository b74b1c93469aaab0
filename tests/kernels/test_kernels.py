"""Each optimisation: where it is used, where it is not, and that it is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ftcli.config.recipe import PromptTuning, Qlora
from ftcli.data.tokenizing.prefix_tree import (
    SHARED_TOKENS,
    build_prefix_tree,
    split_by_tokens,
    typical_common_prefix,
)
from ftcli.kernels import liger
from ftcli.kernels.attention import attend, attention_for
from ftcli.kernels.dequantised import cache_dequantised, is_four_bit
from ftcli.kernels.lora import fuse_lora
from ftcli.kernels.slots import layout_of
from ftcli.models.batches import packed, padded
from ftcli.models.loss import summed_loss
from ftcli.models.methods import attach, quantization
from ftcli.models.virtual_tokens import causal_model
from ftcli.training.collators import PackingCollator, PaddingCollator, scoring_collator
from tests.kernels.test_packed_families import assert_same, model_of, rows, through
from tests.tiny_models import falcon, llama, logits, lora, reload_in_4_bits, shake

# Dequantised weights


def in_4_bits(folder: Path, kind: torch.dtype) -> Any:
    method = Qlora(mode="qlora", rank=4)
    base = reload_in_4_bits(
        llama(max_position_embeddings=256).to(kind), folder, quantization(method, kind)
    )
    model = attach(base, method, seed=1)
    shake(model)
    return model.train()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_cached_weights_equal_those_of_bitsandbytes(kind: torch.dtype, tmp_path: Path) -> None:
    model = in_4_bits(tmp_path, kind)
    ids = torch.arange(1, 25)[None]
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16)
    with torch.no_grad(), mixed:
        expected = model(input_ids=ids).logits
    layers = [layer for layer in model.modules() if is_four_bit(layer)]
    assert cache_dequantised(model) == sum(
        layer.in_features * layer.out_features * kind.itemsize for layer in layers
    )
    with torch.no_grad(), mixed:
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert not any("kept" in name for name in model.state_dict())


def test_qlora_with_all_optimisations_is_qlora_without(tmp_path: Path) -> None:
    model = in_4_bits(tmp_path, torch.float32)
    expected = through(model, padded(rows(), 0))
    assert_same(through(model, packed(rows(), share_prefix=True)), expected)
    unfused = fuse_lora(model)
    assert_same(through(model, padded(rows(), 0)), expected)
    cache_dequantised(model)
    assert unfused == 14
    assert_same(through(model, packed(rows(), share_prefix=True)), expected)


# Fused LoRA


@pytest.mark.parametrize(
    ("keys", "fused"),
    [
        ({}, 21),
        ({"dropout": 0.1}, 0),
        ({"dora": True}, 0),
        ({"rslora": True}, 21),
        ({"rank_pattern": {"q_proj": 2}}, 21),
        ({"layers": [0]}, 7),
    ],
)
def test_only_plain_layers_are_fused(keys: dict[str, Any], fused: int) -> None:
    model = attach(llama(num_hidden_layers=3, max_position_embeddings=256), lora(**keys), seed=1)
    shake(model)
    expected = through(model.eval(), padded(rows(), 0))
    assert fuse_lora(model) == fused
    assert_same(through(model, padded(rows(), 0)), expected)


# Attention


def test_a_long_row_in_16_bits_is_as_exact_as_through_torch_s_kernel() -> None:
    """A sum over many blocks in 16 bits would round each time."""
    torch.manual_seed(4)
    tokens = 1024
    layout = layout_of(build_prefix_tree([list(range(tokens))], share=False))
    heads = [torch.randn(1, count, tokens, 32) for count in (3, 1, 1)]
    wanted = torch.randn(1, tokens, 3, 32)

    def gradients(kind: torch.dtype, *, ours: bool) -> tuple[Tensor, ...]:
        query, key, value = (tensor.to(kind).requires_grad_() for tensor in heads)
        if ours:
            attended, _ = attend(nn.Identity(), query, key, value, None, layout=layout)
        else:
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            ).transpose(1, 2)
        return torch.autograd.grad(attended, (query, key, value), wanted.to(kind))

    exact = gradients(torch.float32, ours=False)
    assert_close(gradients(torch.float32, ours=True), exact, rtol=1e-4, atol=1e-5)
    theirs, found = (gradients(torch.bfloat16, ours=ours) for ours in (False, True))
    for true, their, our in zip(exact[1:], theirs[1:], found[1:], strict=True):
        assert (our - true).norm() < 1.1 * (their - true).norm()


# Liger's norms


class HalfRMSNorm(LlamaRMSNorm):
    """By its name and its attributes one of theirs."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 0.5 * super().forward(hidden)


def test_liger_takes_the_norms_that_have_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kernel of its formula, as none of Liger's runs on a CPU."""

    def kernel(hidden: Tensor, weight: Tensor, epsilon: float, plus_one: bool) -> Tensor:
        return F.rms_norm(hidden, (len(weight),), weight + plus_one, epsilon)

    monkeypatch.setattr(liger, "liger_norm", kernel)
    before = torch.get_rng_state()
    llama_norm, gemma_norm = LlamaRMSNorm(8), GemmaRMSNorm(8)
    model = nn.ModuleList([HalfRMSNorm(8), llama_norm, gemma_norm, nn.LayerNorm(8)])
    assert liger.fuse_norms(model) == 2
    assert ["forward" in vars(norm) for norm in model] == [False, True, True, False]
    assert torch.equal(torch.get_rng_state(), before)
    hidden = torch.linspace(-3, 2, 40).view(5, 8)
    for norm in (llama_norm, gemma_norm):
        assert_close(norm(hidden), type(norm).forward(norm, hidden))
    wide = llama_norm.bfloat16()(hidden)
    assert wide.dtype == torch.float32, "as transformers answers another type than its weight's"


# Fused LoRA, in use


def test_a_fused_layer_that_is_switched_off_or_merged_answers_as_peft_does() -> None:
    base = llama()
    before = logits(base)
    model = attach(base, lora(), seed=1)
    shake(model)
    fuse_lora(model)
    tuned = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), before) and not torch.allclose(before, tuned)
    model.merge_adapter()
    assert_close(logits(model), tuned, rtol=1e-4, atol=1e-5)


def test_the_output_of_a_fused_layer_can_be_added_to_in_place() -> None:
    """As Falcon adds the attention to the MLP."""
    model = attach(llama(), lora(), seed=1)
    shake(model)
    hidden = torch.randn(2, 5, 64)

    def gradient() -> Tensor:
        inputs = hidden.clone().requires_grad_()
        found = causal_model(model).model.layers[0].self_attn.q_proj(inputs)
        found += 1
        return torch.autograd.grad(found.square().sum(), inputs)[0]

    expected = gradient()
    fuse_lora(model)
    assert_close(gradient(), expected, rtol=1e-4, atol=1e-5)


def test_fused_lora_saves_less_for_the_backward_pass() -> None:
    model = model_of("llama", "lora")

    def kept() -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
            attention_for(model, None),
        ):
            summed_loss(model, padded(rows(), 0))
        return sum(sizes.values())

    before = kept()
    fuse_lora(model)
    assert kept() < before


# Division of a step

IDS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), min_size=1, max_size=20)


@given(IDS, st.integers(0, 30), st.integers(1, 120), st.integers(1, 20), st.booleans())
def test_micro_batches_have_every_row_once_within_tokens_and_rows(
    ids: list[list[int]], prefix: int, tokens: int, most: int, share: bool
) -> None:
    texts = [[9] * prefix + row for row in ids]
    parts = split_by_tokens(texts, tokens, most, share=share)
    assert sorted(row for part in parts for row in part) == list(range(len(texts)))
    for part in parts:
        found = build_prefix_tree([texts[row] for row in part], share=share).tokens
        # What is too short to be shared is counted as shared while rows are divided.
        assert len(part) == 1 or found <= tokens + (SHARED_TOKENS * len(part) if share else 0)
        assert len(part) <= most


def test_parts_are_even_and_like_rows_stay_together() -> None:
    rows_of_ten = [[place] * 10 for place in range(10)]
    assert [len(part) for part in split_by_tokens(rows_of_ten, 90, 99, share=True)] == [5, 5]
    one, other = [1] * 50, [2] * 50
    mixed = [[*start, last] for last in (3, 4, 5) for start in (one, other)]
    assert sorted(map(sorted, split_by_tokens(mixed, 60, 99, share=True))) == [
        [0, 2, 4],
        [1, 3, 5],
    ]
    assert len(split_by_tokens(mixed, 60, 99, share=False)) == 6


@pytest.mark.parametrize("common", [0, 50])
def test_half_the_rows_of_a_micro_batch_have_room_for_their_prefix(common: int) -> None:
    rows_alike = [[*[9] * common, *[place] * 10] for place in range(8)]
    tokens = common + 8 * 10
    collator = PackingCollator(tokens, 8, share_prefix=True, common_tokens=common)
    for most in (8, 4, 2, 1):
        assert [len(part) for part in collator.split(rows_alike, most)] == [most] * (8 // most)
        assert collator.rows_of_largest(rows_alike, most) == most


def test_the_typical_common_prefix_is_that_of_rows_in_a_step() -> None:
    prompts = [[7] * 100 + [place] * 5 for place in range(32)]
    assert typical_common_prefix(prompts) == 100
    assert typical_common_prefix([[place] * 5 for place in range(32)]) == 0
    assert typical_common_prefix(prompts[:1]) == 0 == typical_common_prefix([])


# Scoring


def test_scoring_packs_where_the_model_can() -> None:
    ids = [row["input_ids"] for row in rows()]
    assert scoring_collator(llama(), ids, 0) == PackingCollator(2048, None, share_prefix=True)
    assert scoring_collator(falcon(), ids, 0) == PaddingCollator(0)
    virtual = attach(llama(), PromptTuning(mode="prompt-tuning", virtual_tokens=4), seed=1)
    assert scoring_collator(virtual, ids, 0) == PaddingCollator(0)
    long = [[7] * 900 + row for row in ids]
    assert scoring_collator(llama(), long, 0).tokens >= 4 * 900
