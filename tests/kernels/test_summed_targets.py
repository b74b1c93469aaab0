"""Sums over several labels of one token: in a fixed order, and in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ftcli.kernels.head import Gradients, Head, cross_entropy
from ftcli.models import loss as loss_module
from ftcli.models.batches import Batch, of_tensors
from ftcli.models.loss import summed_loss
from tests.models.test_loss import gradients, llama


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def repeated(model: PreTrainedModel) -> Batch:
    """One chunk of few targets, most of them after a few of the positions."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 97, (1, 640), generator=random)
    targets = torch.randint(1, 6, (512,), generator=random)
    sources = torch.randint(0, 12, (512,), generator=random)
    return replace(of_tensors(ids, ids), targets=targets, sources=sources, rows=targets * 0)


def test_gradients_are_the_same_to_the_bit_on_two_threads(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    monkeypatch.setattr(loss_module, "LOSS_CHUNK_POSITIONS", 512)
    model = llama(hidden_size=576, max_position_embeddings=640)
    step = repeated(model)
    first = gradients(model, summed_loss(model, step))
    for _ in range(8):
        again = gradients(model, summed_loss(model, step))
        assert all(torch.equal(again[name], gradient) for name, gradient in first.items())


def test_a_head_in_16_bits_adds_up_a_frequent_target_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sum in bf16 would stand still at 256 times what is added."""
    monkeypatch.setattr(loss_module, "LOSS_CHUNK_POSITIONS", 512)
    hidden = torch.full((512, 32), 0.125)
    targets = torch.full((512,), 7)
    heads = {}
    for kind in (torch.float32, torch.bfloat16):
        weight = torch.zeros(97, 32, dtype=kind, requires_grad=True)
        found = Gradients(None, torch.zeros_like(weight), torch.zeros(97, dtype=kind))
        bias = torch.zeros(97, dtype=kind)
        cross_entropy(Head(weight.detach(), bias, 1.0, None), hidden.to(kind), targets, found)
        heads[kind] = found
    exact, rounded = heads.values()
    for name in ("weight", "bias"):
        expected, value = getattr(exact, name)[7], getattr(rounded, name)[7]
        torch.testing.assert_close(value.float(), expected, rtol=0.02, atol=0)


def test_where_the_model_is_sure_16_bits_round_no_more_than_plain_ones() -> None:
    """The target's share nearly cancels against the one-hot there."""
    torch.manual_seed(0)
    weight = (torch.randn(3000, 256) / 8).bfloat16()
    targets = torch.randint(len(weight), (200,))
    hidden = (5 * weight[targets]).bfloat16()  # of the others few have a logit as large

    def plain(kind: torch.dtype) -> torch.Tensor:
        given = hidden.to(kind).requires_grad_()
        logits = (given @ weight.to(kind).T).to(torch.promote_types(kind, torch.float32))
        F.cross_entropy(logits, targets, reduction="sum").backward()
        assert given.grad is not None
        return given.grad.double()

    exact = plain(torch.float64)
    ours = torch.empty_like(hidden)
    whole, into = Head(weight, None, 1.0, None), Gradients(ours, None, None)
    losses = cross_entropy(whole, hidden, targets, into)
    assert losses.median() < 0.05

    def error(found: torch.Tensor) -> float:
        return float((found.double() - exact).norm() / exact.norm())

    assert error(ours) < 1.1 * error(plain(torch.bfloat16))
