"""Answers of many prompts by transformers' `generate`.

Three things are left to us: which prompts are answered in one batch, that what a batch begins with
is prefilled once, and that rows which have ended leave it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    DynamicLayer,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from ftcli.data.tokenizing.packing import SHARED_TOKENS, common_tokens
from ftcli.memory.phases import LEAST_CACHE_TOKENS, PREFILLED_TOKENS, cache_tokens
from ftcli.models.device import free_bytes
from ftcli.models.load import shape_of
from ftcli.models.virtual_tokens import causal_model, generation_inputs, virtual_tokens

# A share of the rows that have to end before `generate` is called again without them.
ENDED = 0.25


def answered_together(
    prompts: Sequence[Sequence[int]], new_tokens: int, rows: int, cache_tokens: int
) -> Iterator[list[int]]:
    """Places of prompts in batches, all of them once, the longest first.

    A batch has at most so many rows, and so many tokens of cache with answers of full length.
    """
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True)
    while order:
        longest = len(prompts[order[0]]) + new_tokens
        count = max(1, min(rows, cache_tokens // longest))
        batches = math.ceil(len(order) / count)
        count = math.ceil(len(order) / batches)  # no small rest
        yield order[:count]
        order = order[count:]


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    arguments: Mapping[str, Any],
) -> list[list[int]]:
    """New token ids after each prompt, up to the one that ended it.

    `arguments`: of `generate`; it draws from torch's own random numbers where they sample.
    """
    network, stops = causal_model(model), torch.tensor(list(stop_ids), device=model.device)
    inputs = _begin(model, prompts)
    plain_cache = _layers(network) <= {DynamicLayer, DynamicSlidingWindowLayer}
    # A state space's cache can neither lose rows nor, in many models, go on with several tokens.
    chunk = max(1, PREFILLED_TOKENS // len(prompts)) if plain_cache else None
    answers: list[list[int]] = [[] for _ in prompts]
    standing = list(range(len(prompts)))
    done = 0
    while True:
        start = inputs["input_ids"].shape[1]
        some_ended = StoppingCriteriaList([_SomeEnded(stops, start)])
        output: Any = network.generate(
            **inputs,
            **arguments,
            max_new_tokens=max_new_tokens - done,
            prefill_chunk_size=chunk,
            stopping_criteria=some_ended if plain_cache else None,
            return_dict_in_generate=True,
        )
        ids, cache = output.sequences, output.cache
        for row, new in zip(standing, ids[:, start:].tolist(), strict=True):
            answers[row] += new
        done += ids.shape[1] - start
        has_ended = torch.isin(ids[:, start:], stops).any(dim=1)
        stay = (~has_ended).nonzero()[:, 0]
        if done == max_new_tokens or not len(stay):
            return [_up_to(answer, stop_ids) for answer in answers]
        standing = [standing[place] for place in stay.tolist()]
        cache.batch_select_indices(stay)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - start), value=1)
        inputs = {"input_ids": ids[stay], "attention_mask": mask[stay], "cache": cache}


def cache_tokens_of(model: PreTrainedModel) -> int:
    """Tokens of cache at once: as many as half of the free memory holds, and no more than make a
    step read as much as the weights, which would make steps slower than it makes them fewer."""
    shape = shape_of(model)
    if shape is None:
        return LEAST_CACHE_TOKENS
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    one = 2 * shape.layers * shape.kv_width * causal_model(model).dtype.itemsize
    return min(cache_tokens(weights, one), max(1, free_bytes(model.device) // 2 // one))


class _SomeEnded(StoppingCriteria):
    """Ends a call of `generate` as soon as enough of its rows have ended."""

    def __init__(self, stops: Tensor, start: int) -> None:
        self._stops = stops
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        ended = torch.isin(input_ids[:, self._start :], self._stops).any(dim=1)
        return (ended.sum() >= ENDED * len(ended)).expand(len(ended))


def _begin(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Of `generate`: prompts behind what all of them begin with, which stands in the cache."""
    shared = common_start(prompts)
    network = causal_model(model)
    # A window counts the padding behind what is shared.
    if not shared or virtual_tokens(model) or _layers(network) != {DynamicLayer}:
        ids, mask = _padded(prompts, 0)
        return generation_inputs(model, ids.to(model.device), mask.to(model.device))
    ids, mask = (each.to(model.device) for each in _padded(prompts, shared))
    cache = DynamicCache(config=network.config)
    network.base_model(input_ids=ids[:1, :shared], cache=cache, use_cache=True)
    cache.batch_repeat_interleave(len(prompts))
    return {"input_ids": ids, "attention_mask": mask, "cache": cache}


def _layers(model: PreTrainedModel) -> set[type]:
    """Kinds of layers of the cache that `generate` makes for a model."""
    return {type(layer) for layer in DynamicCache(config=model.config).layers}


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with, of which each keeps its last; 0 where few."""
    rows = [list(prompt) for prompt in prompts]
    common = min(common_tokens(min(rows), max(rows)), min(map(len, rows)) - 1)
    return common if len(rows) > 1 and common >= SHARED_TOKENS else 0


def _padded(prompts: Sequence[Sequence[int]], shared: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest]; padding stands behind the first `shared` tokens.

    A row is padded with its own first token, which the mask hides and which a repetition penalty
    knows already; the pad token may be the one that ends answers.
    """
    longest = max(map(len, prompts))
    ids, mask = [], []
    for prompt in prompts:
        padding = longest - len(prompt)
        ids.append([*prompt[:shared], *[prompt[0]] * padding, *prompt[shared:]])
        mask.append([1] * shared + [0] * padding + [1] * (len(prompt) - shared))
    return torch.tensor(ids), torch.tensor(mask)


def _up_to(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((place for place, each in enumerate(ids, start=1) if each in stop_ids), len(ids))
    return ids[:end]
