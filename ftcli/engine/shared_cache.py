"""Keys and values of rows that begin alike: the beginning once, behind it each row's own tokens.

Attention reads both without a copy of the beginning for each row: at 1,000 tokens in common such
copies would be the most of what a step reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache, DynamicLayer, PreTrainedModel

from ftcli.engine.kernels.autocast import autocast_type
from ftcli.engine.kernels.switch import attention_named

NAME = "ftcli_shared_cache"
# Position of what only fills a row up: behind every token, so that none sees it.
NOWHERE = 1 << 30
# Queries of one product: their scores are held at once.
QUERIES = 512

# By layer keys and values of tokens [heads, tokens, width].
Beginning = Sequence[tuple[Tensor, Tensor]]


class RowCache(Cache):
    """Each row's own keys and values, in memory that is there from the start.

    transformers' DynamicCache copies all of them for every token.
    """

    def __init__(self, rows: int, columns: int, beginning: Beginning = ()) -> None:
        """Where a beginning is given, the first columns of each row hold a copy of it."""
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.held: list[tuple[Tensor, Tensor]] = []
        """By layer [rows, heads, columns, width]."""
        self.size = (rows, columns)
        self.rows = slice(0, rows)
        self.columns = slice(0, 0)
        """Which of them the next forward pass reads; it writes the last ones."""
        self.copied = beginning[0][0].shape[1] if beginning else 0
        for keys, values in beginning:
            self.held.append((self._empty(keys[None]), self._empty(values[None])))
            for held, states in zip(self.held[-1], (keys, values), strict=True):
                held[:, :, : self.copied] = states

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """transformers' door: write a layer's new keys and values, and return those to be read."""
        if layer_idx == len(self.held):
            self.held.append((self._empty(key_states), self._empty(value_states)))
        keys, values = self.held[layer_idx]
        begin, end = self.columns.start, self.columns.stop
        new = slice(end - key_states.shape[2], end)
        for held, states in ((keys, key_states), (values, value_states)):
            if begin:
                # Hidden tokens count nothing, but 0 * nan is nan.
                held[self.rows, :, self.copied : begin] = 0
            held[self.rows, :, new] = states
        return keys[self.rows, :, self.columns], values[self.rows, :, self.columns]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows to the places of others."""
        for tensor in (tensor for layer in self.held for tensor in layer):
            tensor[targets, :, : self.columns.stop] = tensor[sources, :, : self.columns.stop]

    def _empty(self, states: Tensor) -> Tensor:
        """Of the type that products have, which would else cast all of it for every token."""
        (rows, columns), kind = self.size, autocast_type(states)
        return states.new_empty((rows, states.shape[1], columns, states.shape[3]), dtype=kind)


@dataclass(frozen=True)
class View:
    """What the tokens of a forward pass may see."""

    beginning: Beginning
    """What stands before all rows; none: nothing."""
    queries: Tensor
    """[rows, n]: positions of the tokens."""
    keys: Tensor
    """[rows, m]: positions of what the cache holds of their rows; NOWHERE is seen by none."""
    _hidden: dict[int | None, Tensor] = field(default_factory=dict)

    def hidden(self, window: int | None, like: Tensor) -> Tensor:
        """[rows, n, before + m]: minus infinity where a token does not see, else 0."""
        if window not in self._hidden:
            count = self.beginning[0][0].shape[1] if self.beginning else 0
            before = torch.arange(count, device=self.keys.device).expand(len(self.keys), -1)
            keys = torch.cat((before, self.keys), dim=1)[:, None]
            distance = self.queries[:, :, None] - keys
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            bias = torch.zeros_like(distance, dtype=like.dtype)
            self._hidden[window] = bias.masked_fill(~seen, -torch.inf)
        return self._hidden[window]


def beginning_of(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """What `View` wants of a cache with one row."""
    kind = autocast_type(cache.layers[0].keys) or cache.layers[0].keys.dtype
    return [(layer.keys[0].to(kind), layer.values[0].to(kind)) for layer in cache.layers]


def shared_cache_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Have the model's layers take the attention of this file, which wants a `view`."""
    return attention_named(model, NAME)


def attend(  # noqa: PLR0913 - as transformers calls it
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    view: View,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [rows, heads, n, width] → [rows, n, heads, width]."""
    rows, n, width = len(query), *query.shape[2:]
    hidden = view.hidden(sliding_window, query)
    before = view.beginning[module.layer_idx] if view.beginning else None
    if n == 1 and before is None and softcap is None:
        return _of_one_token(query, key, value, hidden, scaling), None
    query = query * (width**-0.5 if scaling is None else scaling)
    step = max(1, QUERIES // rows)
    parts = [
        _attention(
            query[:, :, start : start + step],
            (key, value),
            before,
            hidden[:, start : start + step],
            softcap,
        )
        for start in range(0, n, step)
    ]
    attended = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    return attended.transpose(1, 2), None


AttentionInterface.register(NAME, attend)


def _of_one_token(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scaling: float | None
) -> Tensor:
    """As `attend`, by torch's own kernel, which copies no keys."""
    rows, shared = key.shape[:2]
    # The query heads that share keys are its queries.
    grouped = query.reshape(rows, shared, -1, query.shape[3])
    attended = F.scaled_dot_product_attention(
        grouped, key, value, attn_mask=hidden[:, None], scale=scaling
    )
    return attended.reshape(rows, 1, -1, value.shape[3])


def _attention(
    query: Tensor,
    own: tuple[Tensor, Tensor],
    before: tuple[Tensor, Tensor] | None,
    hidden: Tensor,
    softcap: float | None,
) -> Tensor:
    """Attention of scaled queries [rows, heads, n, width]; shapes else as in `View`, `RowCache`."""
    rows, heads, n, width = query.shape
    keys, values = own
    shared = keys.shape[1]
    # The query heads that share keys are rows of one product.
    grouped = query.reshape(rows, shared, heads // shared * n, width)
    scores = grouped @ keys.transpose(2, 3)
    if before is not None:
        scores = torch.cat((_by_head(grouped, before[0].transpose(1, 2)), scores), dim=3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(rows, shared, heads // shared, n, -1) + hidden[:, None, None]
    shares = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype).flatten(2, 3)
    count = shares.shape[3] - keys.shape[2]
    attended = shares[..., count:] @ values
    if before is not None:
        attended = attended + _by_head(shares[..., :count], before[1])
    return attended.view(rows, heads, n, values.shape[3])


def _by_head(rows: Tensor, matrices: Tensor) -> Tensor:
    """[rows, heads, n, k] by [heads, k, m], all rows of a head in one product."""
    count, heads, n, inner = rows.shape
    product = rows.transpose(0, 1).reshape(heads, count * n, inner) @ matrices
    return product.view(heads, count, n, -1).transpose(0, 1)
