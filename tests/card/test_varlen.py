"""Packed rows through torch's flash kernel, which a CPU lacks: here through its definition, by
flash-attention 2.1 (causal masks and windows aligned at the last key)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as kernel

from ftcli.kernels import varlen
from ftcli.models.batches import Batch, packed
from ftcli.models.loss import row_losses
from tests.architectures import FAMILIES
from tests.kernels.test_packed_families import (
    METHODS,
    assert_same,
    assert_scored_alone,
    model_of,
    plain,
    rows,
    through,
)
from tests.tiers import tiers

pytestmark = pytest.mark.card

UNCAPPED = [name for name in FAMILIES if not name.startswith("gemma2")]


@dataclass
class Sequence:
    """Queries [heads, n, width] and what they attend to, with keys for each query head."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: list[int]

    def probabilities(self) -> Tensor:
        n, m = self.query.shape[1], self.key.shape[1]
        scores = self.query @ self.key.transpose(1, 2) * self.scale
        distance = torch.arange(m) - (torch.arange(n)[:, None] + m - n)
        hidden = distance > self.window[1]
        if self.window[0] >= 0:
            hidden |= distance < -self.window[0]
        return scores.masked_fill(hidden, -math.inf).softmax(-1)

    def gradients(self, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.probabilities()
        of_found = upstream @ self.value.transpose(1, 2)
        scores = found * (of_found - (of_found * found).sum(-1, keepdim=True)) * self.scale
        return (
            scores @ self.key,
            scores.transpose(1, 2) @ self.query,
            found.transpose(1, 2) @ upstream,
        )


def sequences(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: tuple[Tensor, Tensor],
    scale: float | None,
    window: list[int],
) -> Iterator[tuple[slice, slice, Sequence]]:
    """Each with the places of its queries and of its keys."""
    groups = query.shape[1] // key.shape[1]
    for number in range(len(ends[0]) - 1):
        queries, keys = (slice(int(each[number]), int(each[number + 1])) for each in ends)
        q, k, v = query[queries], key[keys], value[keys]
        k, v = (each.repeat_interleave(groups, dim=1) for each in (k, v))
        parts = (each.transpose(0, 1) for each in (q, k, v))
        yield queries, keys, Sequence(*parts, scale or query.shape[-1] ** -0.5, window)


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, query_ends, key_ends, _, _, is_causal, scale, window = arguments[:10]
    assert is_causal == (window == [-1, 0]) and window[1] == 0
    out = torch.empty_like(query)
    for queries, _, each in sequences(query, key, value, (query_ends, key_ends), scale, window):
        out[queries] = (each.probabilities() @ each.value).transpose(0, 1)
    return out, query.new_empty(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    query, key, value, _, _, query_ends, key_ends = arguments[:7]
    scale, window = arguments[-2:]
    totals = tuple(map(torch.zeros_like, (query, key, value)))
    for queries, keys, each in sequences(query, key, value, (query_ends, key_ends), scale, window):
        grads = each.gradients(upstream[queries].transpose(0, 1))
        for total, place, grad in zip(totals, (queries, keys, keys), grads, strict=True):
            by_token = grad.transpose(0, 1)
            total[place] += by_token.unflatten(1, (total.shape[1], -1)).sum(2)
    return totals


kernel._varlen_attn.register_kernel("cpu")(forward)
kernel._varlen_attn_backward.register_kernel("cpu")(backward)


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    own: Callable[..., Batch] = partial(packed, on_gpu=True)
    monkeypatch.setattr("tests.kernels.test_packed_families.packed", own)
    yield


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("name", tiers(UNCAPPED, *UNCAPPED[::3]))
def test_each_row_is_scored_as_by_itself(name: str) -> None:
    assert_scored_alone(model_of(name, "lora").eval())


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("method", tiers(METHODS, "lora"))
@pytest.mark.parametrize("name", tiers(UNCAPPED, "qwen2 window", "phi3"))
def test_loss_and_gradients_are_those_of_padded_rows(name: str, method: str, share: bool) -> None:
    model = model_of(name, method)
    found = through(model, packed(rows(), share_prefix=share, on_gpu=True))
    assert_same(found, plain(model))


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("wrong", ["keys", "key_ends"])
def test_wrong_keys_are_noticed(wrong: str) -> None:
    model = model_of("llama", "lora").eval()
    batch = packed(rows(), share_prefix=True, on_gpu=True)
    layout = batch.layout
    assert isinstance(layout, varlen.KeyLayout) and layout.keys is not None
    right, _ = row_losses(model, batch)
    shifted = {
        "keys": layout.keys.roll(1),
        "key_ends": layout.key_ends - (layout.key_ends > 0).int(),
    }
    other = replace(batch, layout=replace(layout, **{wrong: shifted[wrong]}))
    assert not torch.allclose(right, row_losses(model, other)[0], rtol=1e-3)


def test_a_batch_keeps_its_numbers_on_the_way() -> None:
    batch = packed(rows(), share_prefix=True, on_gpu=True)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved.layout, varlen.KeyLayout) and isinstance(batch.layout, varlen.KeyLayout)
    for name in ("query_ends", "key_ends", "keys"):
        assert torch.equal(getattr(moved.layout, name), getattr(batch.layout, name))
    unshared = packed(rows(), share_prefix=False, on_gpu=True).layout
    assert isinstance(unshared, varlen.KeyLayout) and unshared.keys is None
