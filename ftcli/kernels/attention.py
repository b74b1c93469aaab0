"""Attention over packed rows: a token sees earlier tokens of its own row only.

Queries, keys and values are gathered into groups of segments (`slots.py`). There the query heads of
one key-value head (grouped-query attention) are rows of one matrix, and each block of queries is
multiplied with the keys it may see. Attention probabilities of blocks with up to `KEPT_KEYS` keys
are saved for backward: short rows, and the first block of longer ones. The others, which grow with
the square of a row's length, are recomputed. On a CPU, plain products of blocks are faster than
torch's fused kernel, whose backward pass is slow (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel

from ftcli.compat import attention_named, softmax_backward
from ftcli.kernels import varlen
from ftcli.kernels.autocast import autocast_type
from ftcli.kernels.slots import Layout, SegmentGroup
from ftcli.memory.activations.layers import KEPT_KEYS, KEYS_ROUNDED

NAME = "ftcli_packed"
# Queries of one product: with fewer, fewer masked scores are computed.
BLOCK = 192


@dataclass(frozen=True)
class Parameters:
    """A model's attention: layout, heads, scaling and window."""

    layout: Layout
    num_kv_heads: int
    num_kv_groups: int
    """Query heads per key-value head."""
    scaling: float
    softcap: float | None
    window: int | None
    """Positions that a token sees, including its own."""

    def saves(self, probabilities: Tensor) -> bool:
        """Whether they are saved for backward; a softcap's derivative needs the scores instead."""
        return self.softcap is None and probabilities.shape[-1] <= KEPT_KEYS


def saved_probabilities(layout: Layout) -> int:
    """Number of attention probabilities that are saved for backward, per query head."""
    return sum(
        group.count * (block.queries.stop - block.queries.start) * block.keys.stop
        for group in layout.groups
        for block in _blocks(group, window=None)
        if block.keys.stop <= KEPT_KEYS
    )


def attention_for(
    model: PreTrainedModel, layout: Layout | varlen.KeyLayout | None
) -> AbstractContextManager[None]:
    """Attention that takes this layout of packed rows: this file's on a CPU, torch's flash kernel
    on a GPU; without one, the model's own."""
    if layout is None:
        return nullcontext()
    return attention_named(model, varlen.NAME if isinstance(layout, varlen.KeyLayout) else NAME)


def attend(  # noqa: PLR0913 - as transformers calls it
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, heads, tokens, width] → [1, tokens, heads, width]."""
    # Rotated queries and keys are fp32; autocast casts them for sdpa, but not for this function.
    dtype = autocast_type(query) or value.dtype
    parameters = Parameters(
        layout,
        num_kv_heads=key.shape[1],
        num_kv_groups=query.shape[1] // key.shape[1],
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        window=sliding_window,
    )
    by_token = (tensor.squeeze(0).transpose(0, 1).to(dtype) for tensor in (query, key, value))
    output: Tensor = _Packed.apply(*by_token, parameters)
    return output[None], None


AttentionInterface.register(NAME, attend)


class _Packed(torch.autograd.Function):
    """Attention of each group of segments.

    Shapes: query [tokens, heads, width], key and value [tokens, kv heads, width].
    """

    @staticmethod
    def forward(ctx, query, key, value, parameters):  # type: ignore[no-untyped-def]
        gathered = [_gather(tensor, parameters) for tensor in (query, key, value)]
        output, saved = torch.empty_like(gathered[0]), []
        for group in parameters.layout.groups:
            inputs = _group_inputs(group, gathered, (key, value), parameters)
            group_output = group.own(output, parameters.num_kv_heads)
            for block in _blocks(group, parameters.window):
                part = block.of(inputs)
                probabilities = _scores(part, parameters)[0].softmax(dim=-1)
                weighted = torch.bmm(probabilities, part.value)
                group_output[:, block.queries] = weighted.view(part.query.shape)
                saved.append(probabilities if parameters.saves(probabilities) else None)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.parameters = parameters
        return _scatter(output, query, parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        tensors, parameters = ctx.saved_tensors, ctx.parameters
        inputs, saved = tensors[:3], iter(tensors[3:])
        heads = parameters.num_kv_heads
        gathered = [_gather(tensor, parameters) for tensor in inputs]
        upstream = _gather(upstream, parameters)
        upstream.index_fill_(0, parameters.layout.order(heads).padding, 0)
        own_grads = [torch.empty_like(tensor) for tensor in gathered]
        prefix_grads = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in inputs[1:]]
        for group in parameters.layout.groups:
            group_inputs = _group_inputs(group, gathered, inputs[1:], parameters)
            grads = _group_gradients(
                group, group_inputs, group.own(upstream, heads), saved, parameters
            )
            for total, grad in zip(own_grads, grads, strict=True):
                group.own(total, heads).copy_(grad[:, -group.length :])
            for total, grad in zip(prefix_grads, grads[1:], strict=True):
                _add_prefix_gradient(group, total, grad[:, : group.position])
        query_grad, *kv_grads = (
            _scatter(grad, tensor, parameters)
            for grad, tensor in zip(own_grads, inputs, strict=True)
        )
        return query_grad, *(a.add_(b) for a, b in zip(kv_grads, prefix_grads, strict=True)), None


@dataclass(frozen=True)
class _Inputs:
    """Queries of the segments of a group, with the keys and values they may see.

    Shapes: query [segments x kv heads, n, kv groups x width], key and value [segments x kv heads,
    m, width].
    """

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class _Block:
    """Queries of each segment, and the range of keys of its row that they may see."""

    queries: slice
    keys: slice

    def of(self, inputs: _Inputs) -> _Inputs:
        """A view."""
        key, value = inputs.key[:, self.keys], inputs.value[:, self.keys]
        return _Inputs(inputs.query[:, self.queries], key, value)


def _blocks(group: SegmentGroup, window: int | None) -> Iterator[_Block]:
    length, position = group.length, group.position
    start = 0
    while start < length:
        most = position + start + BLOCK
        end = min(length, most - most % KEYS_ROUNDED - position)
        first_key = 0 if window is None else max(0, position + start - window + 1)
        first_key -= first_key % KEYS_ROUNDED
        yield _Block(slice(start, end), slice(first_key, position + end))
        start = end


def _gather(tensor: Tensor, parameters: Parameters) -> Tensor:
    """[tokens, heads, width] → [slots x kv heads, kv groups x width]."""
    rows = tensor.reshape(len(tensor) * parameters.num_kv_heads, -1)
    return rows.index_select(0, parameters.layout.order(parameters.num_kv_heads).gather)


def _scatter(rows: Tensor, like: Tensor, parameters: Parameters) -> Tensor:
    """Inverse of `_gather`."""
    order = parameters.layout.order(parameters.num_kv_heads)
    return rows.index_select(0, order.scatter).view(like.shape)


def _group_inputs(
    group: SegmentGroup,
    gathered: Sequence[Tensor],
    by_token: Sequence[Tensor],
    parameters: Parameters,
) -> _Inputs:
    """Queries of a group; keys and values include the group's prefix."""
    query, *keys_and_values = (group.own(tensor, parameters.num_kv_heads) for tensor in gathered)
    if group.prefix:
        keys_and_values = [
            torch.cat((_prefix(group, tensor), own), dim=1)
            for tensor, own in zip(by_token, keys_and_values, strict=True)
        ]
    return _Inputs(query, *keys_and_values)


def _prefix(group: SegmentGroup, tensor: Tensor) -> Tensor:
    """The group's prefix, from [tokens, heads, width] to [segments x heads, prefix, width]."""
    spans = torch.cat([tensor[start:end] for start, end in group.prefix])
    return spans.transpose(0, 1).repeat(group.count, 1, 1)


def _add_prefix_gradient(group: SegmentGroup, total: Tensor, grad: Tensor) -> None:
    """Backward of `_prefix`: add `grad` to the gradient `total` [tokens, heads, width]."""
    if not group.prefix:
        return
    heads = total.shape[1]
    summed = grad.unflatten(0, (group.count, heads)).sum(dim=0).transpose(0, 1)
    for start, end in group.prefix:
        total[start:end] += summed[: end - start]
        summed = summed[end - start :]


def _group_gradients(
    group: SegmentGroup,
    inputs: _Inputs,
    upstream: Tensor,
    saved: Iterator[Tensor | None],
    parameters: Parameters,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by query, key and value of a group; sums over blocks are in fp32.

    `saved` yields one item per block.
    """
    blocks = list(_blocks(group, parameters.window))
    if len(blocks) == 1 and not blocks[0].keys.start:
        return _gradients(inputs, upstream, next(saved), parameters)
    query_grad = torch.empty_like(inputs.query)
    kv_grads = [torch.zeros_like(part, dtype=torch.float32) for part in (inputs.key, inputs.value)]
    for block in blocks:
        grads = _gradients(block.of(inputs), upstream[:, block.queries], next(saved), parameters)
        query_grad[:, block.queries] = grads[0]
        for total, grad in zip(kv_grads, grads[1:], strict=True):
            total[:, block.keys] += grad
    return query_grad, kv_grads[0], kv_grads[1]


def _gradients(
    inputs: _Inputs, upstream: Tensor, probabilities: Tensor | None, parameters: Parameters
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by query, key and value as autograd computes them, but without the output.

    Probabilities that were not saved are recomputed.
    """
    derivative = None
    if probabilities is None:
        scores, derivative = _scores(inputs, parameters)
        probabilities = scores.softmax(dim=-1)
    queries, upstream = (
        _heads_as_rows(inputs.query, parameters),
        _heads_as_rows(upstream, parameters),
    )
    value_grad = torch.bmm(probabilities.transpose(1, 2), upstream)
    probability_grad = torch.bmm(upstream, inputs.value.transpose(1, 2))
    score_grad = softmax_backward(probability_grad, probabilities)
    if derivative is not None:
        score_grad *= derivative
    query_grad = torch.bmm(score_grad, inputs.key).mul_(parameters.scaling)
    key_grad = torch.bmm(score_grad.transpose(1, 2), queries).mul_(parameters.scaling)
    return query_grad.view(inputs.query.shape), key_grad, value_grad


def _scores(inputs: _Inputs, parameters: Parameters) -> tuple[Tensor, Tensor | None]:
    """Masked scores, and the derivative of the softcap if the model has one."""
    queries, keys = _heads_as_rows(inputs.query, parameters), inputs.key.transpose(1, 2)
    scores = torch.baddbmm(queries.new_empty(1), queries, keys, beta=0, alpha=parameters.scaling)
    derivative = None
    if parameters.softcap is not None:
        capped = torch.tanh(scores / parameters.softcap)
        scores, derivative = capped * parameters.softcap, 1 - capped**2
    _mask(scores, inputs.query.shape[1], parameters)
    return scores, derivative


def _mask(scores: Tensor, n: int, parameters: Parameters) -> None:
    """Set scores [..., n x kv groups, m] of the last n of m tokens to minus infinity for keys
    after their query or before its window."""
    m, groups = scores.shape[-1], parameters.num_kv_groups
    scores[..., m - n :] += parameters.layout.causal_mask(n, groups, scores)
    if parameters.window is not None and m > parameters.window:
        keys = m - parameters.window
        scores[..., :keys] += parameters.layout.window_mask(n, keys, groups, scores)


def _heads_as_rows(query: Tensor, parameters: Parameters) -> Tensor:
    """[segments x kv heads, n, kv groups x width] → [..., n x kv groups, width], a view."""
    return query.view(len(query), query.shape[1] * parameters.num_kv_groups, -1)
