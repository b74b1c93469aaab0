"""How much predictions of two models differ, and the arithmetic of that comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftcli.config.recipe import Lora, Qlora
from ftcli.export.parity import Parity, Prediction, compute_in, parity, predictions_of
from ftcli.models.methods import attach, quantization
from tests.tiny_models import IDS, llama, logits, lora, reload_in_4_bits, shake


def said(logits: Sequence[Tensor]) -> list[Prediction]:
    """Of rows whose tokens are all the first of the vocabulary."""
    return [Prediction(row, torch.zeros(len(row), dtype=torch.long)) for row in logits]


def compared(reference: list[Tensor], candidate: list[Tensor]) -> Parity:
    return parity(said(reference), said(candidate))


def logits_in(model: PreTrainedModel, dtype: torch.dtype) -> Tensor:
    with torch.no_grad(), compute_in(model, dtype):
        return model(input_ids=IDS, use_cache=False).logits


def in_16_bits(model: PreTrainedModel) -> PreTrainedModel:
    """As from_pretrained does: weights, and not the frequencies of positions."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


# Figures


def test_the_figures_are_those_of_numpy() -> None:
    reference = [torch.randn(200, 11) * 3, torch.randn(5, 11) * 3]
    candidate = [row + torch.randn_like(row) * 0.1 for row in reference]
    p, q = (
        np.concatenate([row.numpy().astype(np.float64) for row in side])
        for side in (reference, candidate)
    )
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    found = compared(reference, candidate)
    assert found.tokens == 205
    assert found.kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())
    assert found.top1_agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert 0.9 < found.top1_agreement < 1
    assert found.max_logit_difference == pytest.approx(np.abs(p - q).max(), rel=1e-6)


def test_equal_logits_differ_by_nothing() -> None:
    row = torch.randn(7, 50) * 10
    found = compared([row], [row])
    assert (found.kl, found.top1_agreement, found.max_logit_difference) == (0.0, 1.0, 0.0)
    assert found.losses == found.reference_losses and found.tokens == 7


def test_losses_are_summed_row_by_row() -> None:
    reference, candidate = ([torch.randn(n, 11) for n in (200, 5)] for _ in range(2))
    found = compared(reference, candidate)
    assert found.label_tokens == (200, 5)
    for losses, rows in ((found.reference_losses, reference), (found.losses, candidate)):
        expected = [-row.double().log_softmax(-1)[:, 0].sum().item() for row in rows]
        assert losses == pytest.approx(expected)


def test_rows_of_a_batch_predict_what_they_predict_alone() -> None:
    rows = [
        {"input_ids": list(range(1, n)), "labels": [-100, -100, *range(3, n)]} for n in (9, 30, 4)
    ]
    network = llama()
    alone = [next(predictions_of(network, [row], 0, torch.float64)) for row in rows]
    for one, found in zip(alone, predictions_of(network, rows, 0, torch.float64), strict=True):
        assert torch.equal(one.targets, found.targets)
        assert (one.logits - found.logits).abs().max() < 1e-6


@pytest.mark.parametrize("index", [0, 1])
def test_nan_stays_nan(index: int) -> None:
    reference = [torch.randn(3, 5), torch.randn(3, 5)]
    candidate = [row.clone() for row in reference]
    candidate[index][1, 2] = math.nan
    found = compared(reference, candidate)
    assert math.isnan(found.kl) and math.isnan(found.max_logit_difference)


def test_a_missing_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compared([torch.randn(3, 5)] * 2, [torch.randn(3, 5)])


# Arithmetic


def test_weights_are_upcast_only_during_their_forward_pass() -> None:
    model = in_16_bits(llama())
    before = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    wide = llama()
    wide.load_state_dict(model.state_dict())
    expected = wide(input_ids=IDS).logits
    assert not torch.equal(model(input_ids=IDS).logits.float(), expected)
    assert torch.equal(logits_in(model, torch.float32), expected)
    after = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    assert after == before
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16


def test_only_one_group_is_upcast_at_a_time() -> None:
    model, wide = in_16_bits(llama()), []

    def count(*_: object) -> None:
        wide.append(sum(p.numel() for p in model.parameters() if p.dtype == torch.float32))

    for module in model.modules():
        module.register_forward_hook(count)
    logits_in(model, torch.float32)
    assert 0 < max(wide) <= max(parameter.numel() for parameter in model.parameters())


def test_in_float64_the_order_of_sums_does_not_count() -> None:
    """The same function, its adapter merged and unmerged: in fp32 they differ."""
    adapted = attach(llama(), lora(), seed=0)
    shake(adapted)
    network = adapted.get_base_model()
    outside = {dtype: logits_in(network, dtype) for dtype in (torch.float32, torch.float64)}
    assert outside[torch.float64].dtype == torch.float64
    network = network.double()
    adapted.merge_adapter()
    exact = network(input_ids=IDS).logits
    differences = {
        dtype: (found.double() - exact).abs().max().item() for dtype, found in outside.items()
    }
    assert differences[torch.float64] < differences[torch.float32] / 2


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("modules", [[], ["embed_tokens"], ["lm_head"]])
@pytest.mark.parametrize("tied", [False, True])
def test_16_bit_weights_of_an_adapter_compute_in_fp32(
    dora: bool, modules: list[Any], tied: bool
) -> None:
    method = Lora(mode="lora", rank=2, dora=dora, modules_to_save=modules)
    base = in_16_bits(llama(tie_word_embeddings=tied))
    wide = llama(tie_word_embeddings=tied)
    wide.load_state_dict(base.state_dict())
    adapted, expected = attach(base, method, seed=0), attach(wide, method, seed=0)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    for name, parameter in expected.named_parameters():
        if name in trained:
            trained[name].data.add_(torch.randn(parameter.shape) * 0.05)
            parameter.data.copy_(trained[name])
    found = logits_in(adapted.get_base_model(), torch.float32)
    assert (found - logits(expected)).abs().max() < 1e-5


def test_4_bit_layers_stay_and_compute_in_fp32(tmp_path: Path) -> None:
    config = quantization(Qlora(mode="qlora"), torch.bfloat16)
    model = reload_in_4_bits(llama(), tmp_path, config)
    packed = {n: p.data.clone() for n, p in model.named_parameters() if p.dtype == torch.uint8}
    found = logits_in(model, torch.float32)
    assert len(packed) == 14
    assert all(torch.equal(model.get_parameter(name), data) for name, data in packed.items())
    whole = model.dequantize(torch.float32).float()
    assert (found - whole(input_ids=IDS).logits).abs().max() < 1e-5
