"""Bytes that the layers save for backward: what was measured, and what a kernel or a loop changes.

`Architecture.saved` has what autograd saves in transformers' own layers; tests/memory count it on
tiny models, unless another source is given.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ftcli.memory.activations.inputs import (
    all_trained_inputs,
    first_trained,
    kept_weights_bytes,
    tiled_inputs,
    trained_inputs,
    unreached_layers,
    unreached_masks_bytes,
)
from ftcli.memory.architecture import ATTENTION, Architecture, LayerKind, Norm, Saved
from ftcli.memory.choices import Choices
from ftcli.memory.trained import block_ends, mlp_gradient_bytes, trains_embeddings

# Most keys of a product whose attention probabilities ftcli.kernels.attention keeps: with 256 a
# layer of SmolLM2-135M keeps up to a quarter more, and its attention takes a quarter less time
# (measured).
KEPT_KEYS = 256
# The keys of its products are a multiple of so many: a softmax in bf16 takes up to 1.4 times as
# long over other numbers (measured), and oneDNN keeps 0.6 MB of code for each shape of a product.
KEYS_ROUNDED = 16

TILE_TOKENS = 4096
"""Tokens of a micro-batch that go through an MLP together where it runs in tiles: as many as keep a
GPU's products busy (as those of DeepSpeed's ALST, whose tiles are as long as the model is wide)."""

# Scores of eager attention take so many times the bytes counted on a CPU, which lacks the casts of
# CUDA's autocast: fitted on published runs.
_EAGER_ON_CUDA = 1.6
# Experts that run one after another take this share of what they take together (transformers before
# 5, fitted on published runs).
_EXPERT_AFTER_EXPERT = 0.35


def layers_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes that all layers together keep from the forward pass to the backward pass."""
    measured = architecture.saved(choices.way())
    if not choices.checkpointing:
        shared = measured.shared_saved.of(choices.micro_batch, choices.positions, choices.keys)
        return round(shared + _kept_layers_bytes(architecture, choices))
    # With offloading the inputs of two layers are on their way to RAM or back.
    inputs = 2 if choices.offloading else architecture.layers
    # Prompt tuning joins its tokens to the rows' embeddings, and Granite multiplies them; they stay
    # too, since checkpointing has them ask for a gradient (enable_input_require_grads).
    frozen = not trains_embeddings(architecture, choices)
    apart = choices.mode == "prompt-tuning" or (frozen and architecture.scaled_embeddings)
    embedded = choices.micro_batch * choices.seq_len if apart else 0
    kept = choices.residual_bytes * architecture.hidden * (inputs * choices.tokens + embedded)
    # The masks of all kinds of layers.
    shared = max(
        architecture.saved(choices.way(kind)).shared_passed.of(
            choices.micro_batch, choices.positions, choices.keys
        )
        for kind in architecture.kinds
    )
    return round(kept + shared)


def offloaded_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of a micro-batch that are in RAM from the forward pass to the backward pass: the inputs
    of the layers, and what the norm before the head keeps."""
    if not choices.offloading:
        return 0
    inputs = choices.residual_bytes * architecture.hidden * architecture.layers
    return round(choices.tokens * (inputs + last_norm_bytes(architecture, choices)))


def ram_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of RAM that is kept for the GPU. torch takes a power of two for each tensor in pinned
    memory (ATen/core/CachingHostAllocator.h): all but embeddings, unless they are the head."""
    found = 0
    if choices.offloading:
        inputs = choices.residual_bytes * architecture.hidden * choices.tokens
        last_norm = round(choices.tokens * last_norm_bytes(architecture, choices))
        found = architecture.layers * _power_of_two(inputs) + _power_of_two(last_norm)
    if choices.embedding_offload:
        matrix = architecture.vocab * architecture.hidden * choices.weight_bytes
        found += _power_of_two(matrix) + (0 if architecture.tied else matrix)
    return found


def _power_of_two(size: int) -> int:
    """The first that is not less."""
    return 1 << max(0, size - 1).bit_length()


def rebuilt_layer_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of the layer whose backward pass runs, beyond what `layers_bytes` counts."""
    temporaries = max(
        temporaries_bytes(architecture, choices, number)
        for number in range(len(architecture.kinds))
    )
    if not choices.checkpointing:
        return round(temporaries)
    kept = max(
        _own_bytes(architecture, choices, number)
        + choices.tokens * trained_inputs(architecture, choices, number)
        for number in range(len(architecture.kinds))
    )
    weights, _ = kept_weights_bytes(architecture, choices)
    return round(temporaries + kept) + weights


def prefix_cache_bytes(architecture: Architecture, choices: Choices) -> int:
    """What lives to the end of the layers with a prefix, in addition to what they keep.

    The cache joins it to each layer's keys and values, where the layers keep copies of those for
    each query head; with all logits, peft's own forward adds the prefix as its encoder gives it,
    and cast."""
    if choices.mode != "prefix-tuning":
        return 0
    whole = choices.loss == "full"
    prefix = choices.virtual_tokens * (choices.stack.adapter_bytes + choices.compute_bytes) * whole
    grouped = any(a.kv_heads < a.heads for kind in architecture.kinds for a in kind.attention)
    joined = choices.keys * choices.compute_bytes if choices.repeats_kv and grouped else 0
    return choices.micro_batch * architecture.cached_width * (prefix + joined)


def _measured(architecture: Architecture, choices: Choices, number: int) -> Saved:
    return architecture.saved(choices.way(architecture.kinds[number])).kinds[number]


def temporaries_bytes(architecture: Architecture, choices: Choices, number: int) -> float:
    """The most that comes and goes inside the backward pass of one layer."""
    passing = _passing_bytes(architecture, choices, number)
    if not choices.tiling:
        return passing
    # One gradient more than counted is there all the time (tests/memory); while a tile runs, those
    # of the MLP's output and input are.
    gradient = choices.residual_bytes * architecture.hidden * choices.tokens
    return gradient + max(passing, 2 * gradient + _tile_bytes(architecture, choices, number))


def _tile_bytes(architecture: Architecture, choices: Choices, number: int) -> float:
    """What a tile of an MLP keeps and makes while its backward pass runs: what the layer keeps more
    without tiles, but for their input; and gradients of trained weights next to their sum."""
    whole, kind = replace(choices, tiled_mlp=False), architecture.kinds[number]
    without = _measured(architecture, whole, number)
    kept = without.kept.per_token - _measured(architecture, choices, number).kept.per_token
    kept += choices.residual_bytes * architecture.hidden
    made = max(each.per_token for each in without.temporaries)
    per_token = kept + made + _gate_change(kind, choices)
    per_token += tiled_inputs(architecture, choices, number)
    return min(choices.tokens, TILE_TOKENS) * per_token + mlp_gradient_bytes(
        architecture, choices, number
    )


def _passing_bytes(architecture: Architecture, choices: Choices, number: int) -> float:
    found = _measured(architecture, choices, number).temporaries
    largest = max(each.of(choices.tokens, choices.keys) for each in found)
    if architecture.kinds[number].experts and choices.stack.linear_experts:
        return _EXPERT_AFTER_EXPERT * largest
    if choices.attention == "eager" and not choices.packed_rows:
        scores = _EAGER_ON_CUDA * found[-1].per_pair * choices.keys
        return choices.tokens * (found[0].per_token + scores)
    if not _computes_scores(choices):
        return largest
    # The scores and their gradient, in fp32.
    grouped = (call for call in architecture.kinds[number].attention if call.kv_heads < call.heads)
    scores = sum(2 * 4 * call.heads * choices.keys * choices.tokens for call in grouped)
    return max(largest, scores)


def _kept_layers_bytes(architecture: Architecture, choices: Choices) -> float:
    """What all layers keep that a gradient goes back through, without checkpointing."""
    first = unreached_layers(architecture, choices)
    kept = 0.0
    for number, kind in enumerate(architecture.kinds):
        reached = sum(layer >= first for layer in kind.layers)
        kept += reached * (_own_bytes(architecture, choices, number) + _prefix_bytes(kind, choices))
    kept += choices.tokens * all_trained_inputs(architecture, choices)
    _, weights = kept_weights_bytes(architecture, choices)
    return kept + weights - _unreached_bytes(architecture, choices, first)


def _prefix_bytes(kind: LayerKind, choices: Choices) -> int:
    """Keys and values of the virtual tokens in one layer, joined to those of the tokens."""
    if choices.mode != "prefix-tuning":
        return 0
    width = sum(
        (call.heads if choices.repeats_kv else call.kv_heads) * (call.key_width + call.value_width)
        for call in kind.attention
    )
    return choices.compute_bytes * width * choices.micro_batch * choices.virtual_tokens


def _unreached_bytes(architecture: Architecture, choices: Choices, first: int) -> float:
    """What the first layer does not keep: no gradient goes further back than the first trained
    weight."""
    module = first_trained(architecture, choices)
    if module is None or choices.stack.compiled:
        return 0
    number = next(n for n, kind in enumerate(architecture.kinds) if first in kind.layers)
    saved = _measured(architecture, choices, number)
    if module == ATTENTION and ATTENTION not in dict(saved.before):
        # Eager attention is not seen as one: from the last linear module in front of it.
        kind = architecture.kinds[number]
        linear, (end,) = kind.linear, block_ends(kind, "attention")
        module = linear[linear.index(end) - 1].name
    before = saved.saved_before(module).of(choices.tokens, choices.keys)
    return before + choices.tokens * unreached_masks_bytes(architecture, choices)


def _own_bytes(architecture: Architecture, choices: Choices, number: int) -> float:
    """What a layer keeps whatever is trained in it, once a gradient goes back through it."""
    kind, saved = architecture.kinds[number], _measured(architecture, choices, number)
    per_token = (
        _norms_change(kind, saved, choices)
        + _attention_change(kind, choices)
        + (0 if choices.tiling else _gate_change(kind, choices))
        + _quantised_inputs(kind, choices)
    )
    return saved.kept.of(choices.tokens, choices.keys) + choices.tokens * per_token


def _norms_change(kind: LayerKind, saved: Saved, choices: Choices) -> float:
    """Bytes of one token that norms keep more than transformers' own on a CPU."""
    each = choices.residual_bytes
    if choices.stack.compiled:
        outer = sum(norm.elements for norm in kind.norms if norm.rows == 1)
        return each * outer - saved.norms.per_token
    if choices.liger:
        return sum(_liger_bytes(norm, choices) for norm in kind.norms) - saved.norms.per_token
    return sum(native_change(norm, choices) for norm in kind.norms)


def native_change(norm: Norm, choices: Choices) -> int:
    """Autocast has torch's layer_norm compute in fp32 on CUDA (aten/autocast_mode.h)."""
    wide = norm.native and choices.autocast and choices.device == "cuda"
    return (4 - choices.residual_bytes) * norm.elements if wide else 0


def _liger_bytes(norm: Norm, choices: Choices) -> int:
    """Liger's norm keeps its input as it is, and one scale for each vector."""
    each = choices.residual_bytes if norm.rows == 1 else choices.activation_bytes
    return each * norm.elements + 4 * norm.rows


def _attention_change(kind: LayerKind, choices: Choices) -> float:
    """Bytes of one token that other attention kernels keep more than FlashAttention."""
    each, change = choices.compute_bytes, 0.0
    for call in kind.attention:
        grouped = call.kv_heads < call.heads
        repeated = each * (call.heads - call.kv_heads) * (call.key_width + call.value_width)
        # The output projection keeps its input where it is trained; with fused queries (Phi-3) that
        # is a copy of the kernel's output.
        first = kind.linear[0].outputs if kind.linear else 0
        fused = first > call.heads * call.key_width
        kept = choices.mode == "full" and not fused
        output = (0 if kept else each * call.heads * call.value_width) + 4 * call.heads
        if choices.mode == "prefix-tuning" and fused and not grouped:
            # Joined to the prefix, values are no view that keeps the whole q, k, v tensor.
            change -= each * (call.heads + call.kv_heads) * call.key_width
        if choices.own_attention:
            # A softcap's derivative needs the scores, which are computed again.
            keys = 0 if call.capped else _kept_keys(choices)
            change += each * call.heads * keys - output
        elif choices.repeated_keys:
            width = call.kv_heads * (call.key_width + call.value_width)
            change += each * width * choices.repeated_keys / choices.tokens
        elif choices.attention == "sdpa" and not (choices.mask or choices.shares_keys):
            change += repeated
        elif _computes_scores(choices) and grouped:
            change += repeated + 4 * call.heads * choices.keys - output
        if choices.stack.fused_qkv and not choices.repeats_kv:
            # v is a view, which keeps the whole q, k, v tensor.
            change += each * (call.heads + call.kv_heads) * call.key_width
    return change


def _kept_keys(choices: Choices) -> int:
    """Most keys of a packed token whose probabilities are kept: the tokens of a short row."""
    longest = choices.keys if choices.longest_row is None else choices.longest_row
    return min(math.ceil(longest / KEYS_ROUNDED) * KEYS_ROUNDED, KEPT_KEYS)


def _computes_scores(choices: Choices) -> bool:
    """torch's sdpa without a fused kernel: on CUDA none takes fp32 and shared keys together
    (aten/native/transformers/cuda/sdp_utils.cpp)."""
    fused = choices.attention == "sdpa" and not choices.mask and choices.shares_keys
    return fused and choices.compute_bytes == 4 and choices.device == "cuda"


def _gate_change(kind: LayerKind, choices: Choices) -> int:
    """A fused gate computes its activation again instead of keeping it."""
    if not (choices.stack.compiled or choices.liger) or not kind.linear:
        return 0
    return -choices.activation_bytes * kind.linear[-1].inputs


def _quantised_inputs(kind: LayerKind, choices: Choices) -> int:
    if choices.quantization != "nf4" or not choices.stack.saves_quantised_inputs:
        return 0
    fused = ("k_proj", "v_proj") if choices.stack.fused_qkv else ()
    return 2 * sum(each.inputs for each in kind.linear if not each.name.endswith(fused or ("\0",)))


def last_norm_bytes(architecture: Architecture, choices: Choices) -> float:
    """What the norm before the head keeps of one token."""
    kept = architecture.saved(choices.way()).last_norm.per_token
    norms = [norm for kind in architecture.kinds for norm in kind.norms if norm.rows == 1]
    like = norms[0] if norms else None
    if like is None:
        return kept
    return _liger_bytes(like, choices) if choices.liger else kept + native_change(like, choices)
