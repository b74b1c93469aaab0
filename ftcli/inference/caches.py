"""What a model's key-value cache is, and whether `generate` is right with it and with padding.

Measured once a model on a few tokens: which class has which cache changes with transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicLayer, GenerationConfig, PreTrainedModel
from transformers import __version__ as VERSION
from transformers.cache_utils import DynamicSlidingWindowLayer

from ftcli.errors import ModelError
from ftcli.memory.step import cache_tokens
from ftcli.models.device import free_bytes, input_device, is_out_of_memory
from ftcli.models.virtual_tokens import (
    backbone_inputs,
    causal_model,
    generating,
    generation_inputs,
    has_prefix,
    virtual_tokens,
)

# What a class of transformers raises in `generate` where it cannot use its own cache.
LIBRARY_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
PROMPT = tuple(range(11, 18))  # no ids of padding or of images


@dataclass(frozen=True)
class Cache:
    """What `generate` can do with one model."""

    layers: frozenset[type]
    """Classes of the cache's layers; of itself if it has none; empty if it is wrong."""
    token_bytes: int
    """Of one token of one row; 0 for states of a fixed size."""
    right: bool
    """Whether tokens after a cache are those without one; a prefix is not asked."""
    padding: bool
    """Whether a row that is padded on the left is answered as alone."""

    @property
    def plain(self) -> bool:
        """Whether it holds the keys and values of all tokens, and nothing else."""
        return self.layers == {DynamicLayer}

    @property
    def grows(self) -> bool:
        """Whether it holds nothing but keys and values, so that it can lose rows and take several
        tokens."""
        return self.right and self.layers <= {DynamicLayer, DynamicSlidingWindowLayer}


_FOUND: WeakKeyDictionary[PreTrainedModel, Cache] = WeakKeyDictionary()


def cache_of(model: PreTrainedModel) -> Cache:
    """Measured once; raises ModelError if transformers cannot generate with the model."""
    key = model if virtual_tokens(model) else causal_model(model)
    if key not in _FOUND:
        _FOUND[key] = _measured(key.eval())
    return _FOUND[key]


def cache_tokens_of(model: PreTrainedModel) -> int:
    """Tokens of KV cache per batch: in half of the free memory, and so that a step reads no more
    cache than weights; beyond that, larger batches gain nothing."""
    token_bytes = cache_of(model).token_bytes
    if not token_bytes:
        return sys.maxsize
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    room = free_bytes(model.device) // 2 // token_bytes
    return min(cache_tokens(weights, token_bytes), max(1, room))


def _measured(model: PreTrainedModel) -> Cache:
    """Some classes see masked padding, or count it as positions (transformers 5.24: DeepSeek V4
    compresses it, RWKV has no mask); of some the cache is wrong (xLSTM, RecurrentGemma)."""
    found: list[Any] = []
    both = _is_right(model, [PROMPT * 2, PROMPT], found)
    right = both or has_prefix(model) or _is_right(model, [PROMPT], found)
    padding = both or (not right and _is_right(model, [PROMPT * 2, PROMPT], cached=False))
    layers, token_bytes = _layers(found[-1]) if right and found else (frozenset[type](), 0)
    if has_prefix(model) and DynamicSlidingWindowLayer in cache_of(causal_model(model)).layers:
        padding = False  # a window counts it, and is longer than these rows
    return Cache(layers, token_bytes, right, padding)


@torch.no_grad()
def _is_right(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    caches: list[Any] | None = None,
    *,
    cached: bool = True,
) -> bool:
    """Whether `generate` has the logits of one forward pass, for two tokens after the last of the
    prompts; appends its cache to `caches`. Raises ModelError if it fails without a cache."""
    network = causal_model(model)
    ids, mask = (each.to(input_device(network)) for each in padded(prompts, 0))
    inputs = generation_inputs(model, ids, mask)
    settings = GenerationConfig(
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        use_cache=cached,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    try:
        with generating(model, inputs["attention_mask"]):
            found: Any = network.generate(**inputs, generation_config=settings)
    except LIBRARY_ERRORS as error:
        if is_out_of_memory(error):
            raise
        if cached and not has_prefix(model):
            return False
        reason = f"{type(network).__name__} cannot generate with transformers {VERSION} ({error})"
        raise ModelError("generate", reason) from error
    if caches is not None:
        caches.append(found.cache)
    row = found.sequences[-1:, -len(prompts[-1]) - 2 :]
    whole = network(**backbone_inputs(model, row)).logits[0, -3:-1].float()
    logits = torch.stack([each[-1] for each in found.logits]).float()
    in_fp32 = network.dtype == torch.float32 and not torch.is_autocast_enabled(ids.device.type)
    rounding = 1e-3 if in_fp32 else 0.05
    return bool((logits - whole).abs().max() <= rounding * whole.abs().max())


def _layers(cache: Any) -> tuple[frozenset[type], int]:
    """Classes of a cache's layers (or its own), and bytes of a token of one row."""
    layers = getattr(cache, "layers", ())
    kept = [layer for layer in layers if isinstance(layer, DynamicLayer)]
    tensors = [each for layer in kept for each in (layer.keys, layer.values)]
    held = sum(each[:1, :, 0].nbytes for each in tensors if each is not None and each.dim() == 4)
    return frozenset(map(type, layers)) or frozenset({type(cache)}), held


def padded(prompts: Sequence[Sequence[int]], shared: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest]; padding follows the first `shared` tokens.

    A row is padded with its own first token, which is masked and does not change a repetition
    penalty. The pad token may be the stop token, and would.
    """
    longest = max(map(len, prompts))
    ids, mask = [], []
    for prompt in prompts:
        padding = longest - len(prompt)
        ids.append([*prompt[:shared], *[prompt[0]] * padding, *prompt[shared:]])
        mask.append([1] * shared + [0] * padding + [1] * (len(prompt) - shared))
    return torch.tensor(ids), torch.tensor(mask)
