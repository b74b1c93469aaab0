"""What the layers keep between forward and backward, in bytes.

Items and sizes were counted with `torch.autograd.graph.saved_tensors_hooks` on transformers 5.24
and peft 0.21 (a tiny Llama on CPU), unless another origin stands beside them.
"""

from __future__ import annotations

from typing import assert_never

from ftcli.shapes import Shape
from ftcli.vram.choices import Choices
from ftcli.vram.trained import adapters_per_layer

# Share of a layer's backward temporaries that are alive together: fitted on published peaks.
_TEMPORARIES_ALIVE = 0.8


def kept_bytes_per_token(shape: Shape, choices: Choices) -> float:
    """Bytes that one layer keeps of one token for its backward pass, without checkpointing."""
    parts = (_norms, _attention, _mlp, _trained_inputs, _quantised_inputs)
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
        passing += 12 * shape.heads * choices.positions
    return _TEMPORARIES_ALIVE * passing


def layers_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes that all layers together keep from the forward pass to the backward pass."""
    kept = mask_bytes(choices) + _prefix_bytes(shape, choices)
    if not choices.checkpointing:
        return kept + round(shape.layers * kept_bytes_per_token(shape, choices) * choices.tokens)
    if choices.stack.offloads_activations:
        # Two layers' inputs are on their way to the host or back.
        return kept + 2 * choices.residual_bytes * shape.hidden * choices.tokens
    return kept + shape.layers * choices.residual_bytes * shape.hidden * choices.tokens


def rebuilt_layer_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes of the layer whose backward pass runs, beyond what `layers_bytes` counts."""
    per_token = temporaries_bytes_per_token(shape, choices)
    if choices.checkpointing:
        per_token += kept_bytes_per_token(shape, choices)
    return round(per_token * choices.tokens)


def mask_bytes(choices: Choices) -> int:
    """Bytes of the attention mask, shared by all layers.

    Eager adds a mask of the activations' type; sdpa takes booleans and makes the same of them
    (aten/native/transformers/attention.cpp, convert_boolean_attn_mask).
    """
    if not choices.mask:
        return 0
    boolean = 1 if choices.attention == "sdpa" else 0
    return choices.tokens * choices.positions * (choices.compute_bytes + boolean)


def _prefix_bytes(shape: Shape, choices: Choices) -> int:
    """Keys and values of the virtual tokens: as they come, and joined to those of each layer."""
    if choices.mode != "prefix":
        return 0
    positions = choices.micro_batch * choices.virtual_tokens * shape.layers
    states = choices.stack.adapter_bytes + choices.compute_bytes
    return 2 * positions * (shape.kv_width * states + shape.query_width * choices.compute_bytes)


def _norms(shape: Shape, choices: Choices) -> float:
    """RMSNorm computes in fp32 and keeps that copy and one scale; a trained weight keeps more."""
    if choices.stack.compiled:
        return choices.residual_bytes * shape.layer_norms * shape.hidden
    normed = 4 if shape.fp32_norms else choices.residual_bytes
    kept = shape.layer_norms * (4 * shape.hidden + 4)
    trained = normed * shape.layer_norms * shape.hidden
    if shape.qk_norm != "none":
        scales = shape.heads + shape.kv_heads if shape.qk_norm == "head" else 2
        kept += 4 * (shape.query_width + shape.kv_width + scales)
        normed = 4 if shape.fp32_norms else choices.activation_bytes
        trained += normed * (shape.query_width + shape.kv_width)
    return kept + (trained if choices.mode == "full" else 0)


def _attention(shape: Shape, choices: Choices) -> float:
    """q, k, v, and what the kernel keeps: its output and the log-sum-exp of each head.

    Eager keeps the probabilities instead, in fp32 and in the type of q.
    """
    each = choices.compute_bytes
    math = _math_attention(shape, choices)
    kv_width = shape.query_width if choices.repeats_kv or math else shape.kv_width
    kept = each * (shape.query_width + 2 * kv_width)
    if (shape.fused_projections or choices.stack.fused_qkv) and not choices.repeats_kv:
        # v is a view, which keeps the whole q, k, v tensor.
        kept += each * (shape.query_width + shape.kv_width)
    if _keeps_scores(shape, choices):
        score = (4 if each == 4 else 4 + each) + (each if shape.capped_scores else 0)
        return kept + score * shape.heads * choices.positions
    return kept + each * shape.query_width + 4 * shape.heads


def _math_attention(shape: Shape, choices: Choices) -> bool:
    """torch's sdpa without a fused kernel: on CUDA none takes fp32 and shared keys together
    (aten/native/transformers/cuda/sdp_utils.cpp)."""
    shares = shape.kv_heads < shape.heads and not choices.repeats_kv
    fp32 = choices.compute_bytes == 4 and choices.attention == "sdpa"
    return fp32 and shares and choices.device == "cuda"


def _keeps_scores(shape: Shape, choices: Choices) -> bool:
    return choices.attention == "eager" or _math_attention(shape, choices)


def _output_is_input(shape: Shape, choices: Choices) -> bool:
    """The output that the attention kernel keeps is the tensor that o_proj reads.

    Not so with eager, which keeps no output, nor where q is laid out by heads (Phi-3).
    """
    return choices.attention != "eager" and not shape.fused_projections


def _mlp(shape: Shape, choices: Choices) -> float:
    """gate, its activation and up; without a gate up and its activation."""
    each = choices.activation_bytes
    tensors = shape.mlp_matrices - (1 if choices.stack.compiled else 0)
    kept = each * tensors * shape.intermediate * shape.active_experts
    if shape.experts > 1:
        # Input and output of each expert a token visits.
        kept += 2 * each * shape.hidden * shape.active_experts
    return kept


def _trained_inputs(shape: Shape, choices: Choices) -> float:
    """Inputs of what is trained in a layer, which its gradient needs."""
    match choices.mode:
        case "full":
            return _full_inputs(shape, choices)
        case "lora" | "qlora":
            return _lora_inputs(shape, choices)
        case "adapter":
            return _adapter_inputs(shape, choices)
        case "prefix" | "prompt":
            return 0
        case _:
            assert_never(choices.mode)


def _full_inputs(shape: Shape, choices: Choices) -> float:
    """Inputs of trained linear layers: of q, k, v, of gate and up, of o, and of down."""
    # Autocast casts an fp32 input for each layer that reads it.
    readers = len(shape.linear_modules().keys() - {"o_proj", "down_proj"})
    residual = 2 * readers if choices.autocast else 2 * choices.residual_bytes
    output = 0 if _output_is_input(shape, choices) else shape.query_width
    inner = shape.intermediate * shape.active_experts
    return (
        residual * shape.hidden + choices.compute_bytes * output + choices.activation_bytes * inner
    )


def _lora_inputs(shape: Shape, choices: Choices) -> float:
    """Inputs of A and of B for every adapted layer, and the dropout's mask."""
    modules = shape.target_modules(choices.targets)
    adapter = choices.stack.adapter_bytes
    each = 2 if choices.autocast else adapter
    kept: float = each * choices.rank * len(modules)
    if choices.dora:
        # The base's and the adapter's output, which the magnitude scales (peft, lora/dora.py).
        kept += 2 * choices.activation_bytes * sum(outputs for _, outputs in modules.values())
    widths = [inputs for inputs, _ in modules.values()]
    if choices.dropout > 0:
        # One byte an element on CUDA (assumed); every layer's dropped input is its own tensor.
        return kept + (each + 1) * sum(widths)
    if adapter != choices.activation_bytes or each != adapter:
        # peft casts the input to the adapter's type (lora/layer.py, _cast_input_dtype) and
        # autocast casts it back, for each layer anew.
        return kept + each * sum(widths)
    shared = {_shared_input(name): inputs for name, (inputs, _) in modules.items()}
    if _output_is_input(shape, choices):
        shared.pop("o_proj", None)
    return kept + each * sum(shared.values())


def _quantised_inputs(shape: Shape, choices: Choices) -> float:
    if choices.quantization != "nf4" or not choices.stack.saves_quantised_inputs:
        return 0
    modules = shape.linear_modules()
    if choices.stack.fused_qkv:
        modules = {name: size for name, size in modules.items() if name not in ("k_proj", "v_proj")}
    return 2 * sum(inputs for inputs, _ in modules.values())


def _adapter_inputs(shape: Shape, choices: Choices) -> float:
    """Of each bottleneck: its input, and its inner width before and after the activation."""
    each = 2 if choices.autocast else choices.stack.adapter_bytes
    return adapters_per_layer(choices) * each * (shape.hidden + 2 * choices.bottleneck)


def _shared_input(module: str) -> str:
    """One word for modules that read the same tensor."""
    groups = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "up", "up_proj": "up"}
    return groups.get(module, module)
