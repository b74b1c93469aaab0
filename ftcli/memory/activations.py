"""Bytes that the layers save for backward.

Items and sizes are counted on transformers 5.24 and peft 0.21 by tests/memory (tiny models on CPU),
unless another source is given.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ftcli.memory.choices import Choices
from ftcli.memory.inputs import (
    all_trained_inputs,
    dropped_queries_bytes,
    expert_bytes,
    first_trained,
    kept_weights_bytes,
    trained_inputs,
    unreached_layers,
)
from ftcli.memory.shapes import Shape
from ftcli.memory.trained import trains_embeddings

# Most keys of a product whose attention probabilities ftcli.kernels.attention keeps: with 256 a
# layer of SmolLM2-135M keeps up to a quarter more, and its attention takes a quarter less time
# (measured).
KEPT_KEYS = 256
# The keys of its products are a multiple of so many: a softmax in bf16 takes up to 1.4 times as
# long over other numbers (measured), and oneDNN keeps 0.6 MB of code for each shape of a product.
KEYS_ROUNDED = 16

# Share of a layer's backward temporaries that are alive together: fitted on published peaks.
_TEMPORARIES_ALIVE = 0.8


def kept_bytes_per_token(shape: Shape, choices: Choices) -> float:
    """Bytes that one layer keeps of one token for its backward pass, without checkpointing: the
    one that keeps most, where not all are adapted alike."""
    return _own_bytes_per_token(shape, choices) + trained_inputs(shape, choices)


def _own_bytes_per_token(shape: Shape, choices: Choices) -> float:
    """What a layer keeps whatever is trained in it, once a gradient goes back through it."""
    parts = (_norms, _attention, _mlp, _quantised_inputs)
    return sum(part(shape, choices) for part in parts)


def temporaries_bytes_per_token(shape: Shape, choices: Choices) -> float:
    """Bytes of one token that come and go inside the backward pass of one layer."""
    inner = shape.intermediate
    if shape.experts > 1:
        # The experts run one after another, each on its share of the tokens.
        inner = 2 * inner * shape.active_experts // shape.experts
    passing = choices.activation_bytes * 3 * (inner + shape.hidden)
    if _keeps_scores(shape, choices):
        # Gradients of the scores, in fp32 and in the kernel's type.
        passing += 12 * shape.heads * choices.keys
    return _TEMPORARIES_ALIVE * passing


def layers_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes that all layers together keep from the forward pass to the backward pass."""
    kept = _rotary_bytes(shape, choices)
    if not choices.checkpointing:
        return kept + _kept_layers_bytes(shape, choices)
    # With offloading the inputs of two layers are on their way to RAM or back.
    inputs = 2 if choices.stack.offloads_activations else shape.layers
    # Prompt tuning joins its tokens to the rows' embeddings, and Granite multiplies them; they stay
    # too, since checkpointing has them ask for a gradient (enable_input_require_grads).
    frozen = not trains_embeddings(shape, choices)
    apart = choices.mode == "prompt-tuning" or (frozen and shape.model_type == "granite")
    embedded = choices.micro_batch * choices.seq_len if apart else 0
    kept += choices.residual_bytes * shape.hidden * (inputs * choices.tokens + embedded)
    return kept + sum(_mask_bytes(kind) for _, kind in _kinds_of_layers(shape, choices))


def _kept_layers_bytes(shape: Shape, choices: Choices) -> int:
    """What all layers keep that a gradient goes back through, without checkpointing."""
    kinds = _kinds_of_layers(shape, choices)
    per_token = sum(layers * _own_bytes_per_token(shape, kind) for layers, kind in kinds)
    # Layers of a kind are spread over the whole model.
    per_token *= 1 - unreached_layers(shape, choices) / shape.layers
    per_token += all_trained_inputs(shape, choices) - _unreached_bytes_per_token(shape, choices)
    _, weights = kept_weights_bytes(shape, choices)
    prefixes = shape.layers * _prefix_bytes(shape, choices)
    return round(per_token * choices.tokens) + weights + prefixes


def rebuilt_layer_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes of the layer whose backward pass runs, beyond what `layers_bytes` counts."""
    kinds = [kind for _, kind in _kinds_of_layers(shape, choices)]
    per_token = max(temporaries_bytes_per_token(shape, kind) for kind in kinds)
    if not choices.checkpointing:
        return round(per_token * choices.tokens)
    per_token += max(kept_bytes_per_token(shape, kind) for kind in kinds)
    weights, _ = kept_weights_bytes(shape, choices)
    return round(per_token * choices.tokens) + weights


def prefix_cache_bytes(shape: Shape, choices: Choices) -> int:
    """What lives to the end of the layers with a prefix, in addition to what they keep.

    The cache joins it to each layer's keys and values, where the layers keep copies of those for
    each query head; with all logits, peft's own forward adds the prefix as its encoder gives it,
    and cast."""
    if choices.mode != "prefix-tuning":
        return 0
    whole = choices.loss == "full"
    prefix = choices.virtual_tokens * (choices.stack.adapter_bytes + choices.compute_bytes) * whole
    copied = choices.repeats_kv and shape.kv_heads < shape.heads
    joined = choices.keys * choices.compute_bytes if copied else 0
    return 2 * choices.micro_batch * shape.layers * shape.kv_width * (prefix + joined)


def _prefix_bytes(shape: Shape, choices: Choices) -> int:
    """Keys and values of the virtual tokens in one layer, joined to those of the tokens."""
    if choices.mode != "prefix-tuning":
        return 0
    width = shape.query_width if choices.repeats_kv else shape.kv_width
    return 2 * choices.compute_bytes * width * choices.micro_batch * choices.virtual_tokens


def _unreached_bytes_per_token(shape: Shape, choices: Choices) -> float:
    """What the first layer does not keep: no gradient goes further back than the first trained
    weight. Bytes of one token, as `kept_bytes_per_token` counts them."""
    reach = first_trained(shape, choices)
    if reach == "embeddings" or choices.stack.compiled:
        return 0
    # OLMo 2 norms what a block returns, not what it reads.
    after = shape.qk_norm == "width"
    norm = norm_bytes(shape, choices)
    unreached: float = 0 if after else norm
    if reach == "queries":
        return unreached + dropped_queries_bytes(shape, choices)
    unreached += _query_norms(shape, choices)
    if reach == "keys":
        return unreached
    unreached += _attention(shape, choices)
    if reach == "output":
        return unreached
    # Of Gemma's four norms one follows the attention, and one the MLP.
    unreached += norm * (1 if after else shape.layer_norms - shape.layer_norms // 4 - 1)
    return unreached + (_mlp(shape, choices) if reach == "end" else 0)


def _kinds_of_layers(shape: Shape, choices: Choices) -> list[tuple[int, Choices]]:
    """Numbers of layers, and the choices as they are in each of them.

    Where a sliding window is no longer than a row, sdpa gets a mask for it (transformers,
    masking_utils.py, _ignore_causal_mask_sdpa).
    """
    window = shape.sliding_window
    if window is None or not shape.windowed_layers:
        return [(shape.layers, choices)]
    short = window <= choices.keys and not choices.packed_rows
    windowed = replace(choices, packing=True) if short else choices
    if shape.windowed_layers == shape.layers:
        return [(shape.layers, windowed)]
    return [
        (shape.layers - shape.windowed_layers, choices),
        (shape.windowed_layers, windowed),
    ]


def _mask_bytes(choices: Choices) -> int:
    """Bytes of the attention mask that layers share, which checkpointing keeps for them.

    Eager adds one of the residual stream's type, sdpa takes booleans.
    """
    if not choices.mask:
        return 0
    each = 1 if choices.attention == "sdpa" else choices.residual_bytes
    return choices.tokens * choices.keys * each


def _rotary_bytes(shape: Shape, choices: Choices) -> int:
    """Cosines and sines of the positions, shared by all rows and layers; fp32 in OLMo 2."""
    each = 4 if shape.qk_norm == "width" else choices.residual_bytes
    return 2 * each * shape.head_dim * choices.positions


def _norms(shape: Shape, choices: Choices) -> float:
    """RMSNorm computes in fp32 and keeps that copy and one scale; a trained weight keeps more."""
    if choices.stack.compiled:
        return choices.residual_bytes * shape.layer_norms * shape.hidden
    kept = shape.layer_norms * norm_bytes(shape, choices) + _query_norms(shape, choices)
    if choices.liger:
        # Half of Gemma's four norms read what a block returns.
        after_blocks = shape.layer_norms // 4 * 2
        kept -= after_blocks * shape.hidden * (choices.residual_bytes - choices.activation_bytes)
        return kept
    if choices.mode != "full" or shape.native_layer_norm:
        return kept
    normed = 4 if shape.fp32_norms else choices.residual_bytes
    kept += normed * shape.layer_norms * shape.hidden
    if shape.qk_norm != "none":
        normed = 4 if shape.fp32_norms else choices.activation_bytes
        kept += normed * (shape.query_width + shape.kv_width)
    return kept


def norm_bytes(shape: Shape, choices: Choices) -> int:
    """What one norm keeps of one token: torch's layer_norm its input and two statistics."""
    if not shape.native_layer_norm:
        return (choices.residual_bytes if choices.liger else 4) * shape.hidden + 4
    # Autocast has it compute in fp32 on CUDA (aten/autocast_mode.h), not on the CPU.
    fp32 = shape.fp32_norms or (choices.autocast and choices.device == "cuda")
    return (4 if fp32 else choices.residual_bytes) * shape.hidden + 8


def _query_norms(shape: Shape, choices: Choices) -> int:
    """The fp32 copies and scales of the norms of queries and keys."""
    if shape.qk_norm == "none":
        return 0
    scales = shape.heads + shape.kv_heads if shape.qk_norm == "head" else 2
    each = choices.activation_bytes if choices.liger else 4
    return each * (shape.query_width + shape.kv_width) + 4 * scales


def _attention(shape: Shape, choices: Choices) -> float:
    """q, k, v, and what the kernel keeps: its output and the log-sum-exp of each head.

    Eager keeps the probabilities instead, in fp32 and in the type of q.
    """
    each = choices.compute_bytes
    math = _math_attention(shape, choices)
    repeats = choices.repeats_kv or math or _flex_repeats(shape, choices)
    kv_width = shape.query_width if repeats else shape.kv_width
    kept = each * (shape.query_width + 2 * kv_width)
    # As many keys as heads are not repeated (repeat_kv returns its input); a prefix is joined.
    copied = choices.repeats_kv and (
        shape.kv_heads < shape.heads or choices.mode == "prefix-tuning"
    )
    if (shape.fused_queries or choices.stack.fused_qkv) and not copied:
        # v is a view, which keeps the whole q, k, v tensor.
        kept += each * (shape.query_width + shape.kv_width)
    if choices.own_attention:
        return kept + each * shape.heads * _kept_keys(shape, choices)
    if _keeps_scores(shape, choices):
        score = (4 if each == 4 else 4 + each) + (each if shape.capped_scores else 0)
        return kept + score * shape.heads * choices.keys
    if choices.mask:
        # sdpa makes numbers of a boolean mask, again in each layer, and keeps them
        # (aten/native/transformers/attention.cpp, convert_boolean_attn_mask).
        kept += each * choices.keys
    return kept + each * shape.query_width + 4 * shape.heads


def _kept_keys(shape: Shape, choices: Choices) -> int:
    """Most keys of a packed token whose probabilities are kept: the tokens of a short row."""
    if shape.capped_scores:
        return 0
    longest = choices.keys if choices.longest_row is None else choices.longest_row
    return min(math.ceil(longest / KEYS_ROUNDED) * KEYS_ROUNDED, KEPT_KEYS)


def _flex_repeats(shape: Shape, choices: Choices) -> bool:
    """Keys and values are copied to one per query head where those are no power of two
    (transformers/integrations/flex_attention.py)."""
    on_card = choices.packed_rows and not choices.own_attention
    return on_card and shape.heads & (shape.heads - 1) != 0


def _math_attention(shape: Shape, choices: Choices) -> bool:
    """torch's sdpa without a fused kernel: on CUDA none takes fp32 and shared keys together
    (aten/native/transformers/cuda/sdp_utils.cpp)."""
    grouped = shape.kv_heads < shape.heads and not choices.repeats_kv
    fp32 = choices.compute_bytes == 4 and choices.attention == "sdpa"
    return fp32 and grouped and choices.device == "cuda" and not choices.packed_rows


def _keeps_scores(shape: Shape, choices: Choices) -> bool:
    eager = choices.attention == "eager" and not choices.packed_rows
    return eager or _math_attention(shape, choices)


def _mlp(shape: Shape, choices: Choices) -> float:
    """gate, its activation and up; without a gate only what the activation read."""
    each = expert_bytes(choices) if shape.experts > 1 else choices.activation_bytes
    again = choices.stack.compiled or choices.liger
    tensors = 1 if shape.mlp_matrices == 2 else 2 if again else 3
    kept = each * tensors * shape.intermediate * shape.active_experts
    if shape.experts > 1:
        # The output of each expert that a token visits, which its share is multiplied with.
        kept += each * shape.hidden * shape.active_experts
    return kept


def _quantised_inputs(shape: Shape, choices: Choices) -> float:
    if choices.quantization != "nf4" or not choices.stack.saves_quantised_inputs:
        return 0
    modules = shape.linear_modules()
    if choices.stack.fused_qkv:
        modules = {name: size for name, size in modules.items() if name not in ("k_proj", "v_proj")}
    return 2 * sum(inputs for inputs, _ in modules.values())
