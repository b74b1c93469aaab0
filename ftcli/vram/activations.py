"""What the layers keep between forward and backward, in bytes.

Items and sizes were counted with `torch.autograd.graph.saved_tensors_hooks` on transformers 5.24
and peft 0.21 (a tiny Llama on CPU), unless another origin stands beside them.
"""

from __future__ import annotations

from ftcli.shapes import Shape
from ftcli.vram.choices import Choices

# Share of a layer's backward temporaries that are alive together: fitted on published peaks.
_TEMPORARIES_ALIVE = 0.8


def kept_bytes_per_token(shape: Shape, choices: Choices) -> float:
    """Bytes that one layer keeps of one token for its backward pass, without checkpointing."""
    inputs = (
        _full_inputs(shape, choices) if choices.mode == "full" else _lora_inputs(shape, choices)
    )
    return _norms(shape, choices) + _attention(shape, choices) + _mlp(shape, choices) + inputs


def temporaries_bytes_per_token(shape: Shape, choices: Choices) -> float:
    """Bytes of one token that come and go inside the backward pass of one layer."""
    inner = shape.intermediate
    if shape.experts > 1:
        # The experts run one after another, each on its share of the tokens.
        inner = 2 * inner * shape.active_experts // shape.experts
    passing = choices.activation_bytes * 3 * (inner + shape.hidden)
    if choices.attention == "eager":
        # Gradients of the scores, in fp32 and in the kernel's type.
        passing += 12 * shape.heads * choices.seq_len
    return _TEMPORARIES_ALIVE * passing


def layers_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes that all layers together keep from the forward pass to the backward pass."""
    if choices.gradient_checkpointing:
        per_token: float = choices.residual_bytes * shape.hidden
    else:
        per_token = kept_bytes_per_token(shape, choices)
    return round(shape.layers * per_token * choices.tokens) + mask_bytes(choices)


def rebuilt_layer_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes of the layer whose backward pass runs, beyond what `layers_bytes` counts."""
    per_token = temporaries_bytes_per_token(shape, choices)
    if choices.gradient_checkpointing:
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
    return choices.tokens * choices.seq_len * (choices.compute_bytes + boolean)


def _norms(shape: Shape, choices: Choices) -> float:
    """RMSNorm computes in fp32 and keeps that copy and one scale; a trained weight keeps more."""
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
    kv_width = shape.query_width if choices.repeats_kv else shape.kv_width
    kept = each * (shape.query_width + 2 * kv_width)
    if shape.fused_projections and not choices.repeats_kv:
        # v is a view, which keeps the whole q, k, v tensor.
        kept += each * (shape.query_width + shape.kv_width)
    if choices.attention == "eager":
        score = (4 if each == 4 else 4 + each) + (each if shape.capped_scores else 0)
        return kept + score * shape.heads * choices.seq_len
    return kept + each * shape.query_width + 4 * shape.heads


def _output_is_input(shape: Shape, choices: Choices) -> bool:
    """The output that the attention kernel keeps is the tensor that o_proj reads.

    Not so with eager, which keeps no output, nor where q is laid out by heads (Phi-3).
    """
    return choices.attention != "eager" and not shape.fused_projections


def _mlp(shape: Shape, choices: Choices) -> float:
    """gate, its activation and up; without a gate up and its activation."""
    each = choices.activation_bytes
    kept = each * shape.mlp_matrices * shape.intermediate * shape.active_experts
    if shape.experts > 1:
        # Input and output of each expert a token visits.
        kept += 2 * each * shape.hidden * shape.active_experts
    return kept


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


def _shared_input(module: str) -> str:
    """One word for modules that read the same tensor."""
    groups = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "up", "up_proj": "up"}
    return groups.get(module, module)
