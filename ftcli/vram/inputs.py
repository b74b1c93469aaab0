"""What the layers keep for the gradients of trained weights: their inputs, and copies of weights.

Counted by tests/vram, as the items of ftcli.vram.activations.
"""

from __future__ import annotations

from typing import Literal, assert_never

from ftcli.shapes import Shape
from ftcli.vram.choices import Choices
from ftcli.vram.trained import adapters_per_layer, expert_tensors, experts_adapted

Reach = Literal["embeddings", "queries", "keys", "output", "inner", "end"]


def first_trained(shape: Shape, choices: Choices) -> Reach:
    """What the first trained weight of the first layer reads, or makes (a prefix: keys)."""
    match choices.mode:
        case "full" | "prompt":
            return "embeddings"
        case "prefix":
            return "keys"
        case "adapter":
            return "end" if choices.placement == "mlp" else "output"
        case "lora" | "qlora":
            return _first_adapted(shape, choices)
        case _:
            assert_never(choices.mode)


def _first_adapted(shape: Shape, choices: Choices) -> Reach:
    if "embed_tokens" in choices.modules_to_save:
        return "embeddings"
    adapted = shape.target_modules(choices.targets)
    if adapted.keys() & set(shape.layout.queries):
        return "queries"
    if shape.layout.output in adapted:
        return "output"
    return "end" if adapted.keys() == {shape.layout.down} else "inner"


def trained_inputs(shape: Shape, choices: Choices) -> float:
    """Bytes of one token that a layer keeps for the gradients of its trained weights."""
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


def kept_weights_bytes(shape: Shape, choices: Choices) -> int:
    """Copies of a layer's weights that its backward pass needs, however many tokens there are."""
    if not choices.has_lora:
        return 0
    copies = 0
    if choices.dora and choices.dropout > 0:
        sizes = shape.target_modules(choices.targets).values()
        copies += _dora_copy_bytes(choices) * sum(inputs * outputs for inputs, outputs in sizes)
    if experts_adapted(shape, choices):
        # peft adds the update to all experts before they are used (lora/layer.py, ParamWrapper).
        matrices = sum(each.elements for each in expert_tensors(shape, choices, 0))
        cast = choices.weight_bytes if choices.weight_bytes != choices.stack.adapter_bytes else 0
        copies += choices.weight_bytes * sum(shape.expert_tensors().values()) + cast * matrices
    return copies


def _dora_copy_bytes(choices: Choices) -> int:
    """DoRA takes the base's product with the dropped input itself, with a weight that is cast to
    the adapter's type and by autocast back (peft, lora/dora.py)."""
    if choices.autocast:
        return 2
    adapter = choices.stack.adapter_bytes
    return adapter if choices.quantization or choices.weight_bytes != adapter else 0


def expert_bytes(choices: Choices) -> int:
    """Bytes of one element in stacked experts, whose product autocast does not know
    (transformers/integrations/moe.py, _grouped_mm)."""
    return choices.activation_bytes if choices.stack.linear_experts else choices.weight_bytes


def _output_is_input(shape: Shape, choices: Choices) -> bool:
    """The output that the attention kernel keeps is the tensor that o_proj reads.

    Not so with eager, which keeps no output, nor where q is laid out by heads (Phi-3).
    """
    return choices.attention != "eager" and not shape.fused_projections


def _full_inputs(shape: Shape, choices: Choices) -> float:
    """Inputs of trained linear layers: of q, k, v, of gate and up, of o, and of down."""
    # Autocast casts an fp32 input for each layer that reads it.
    readers = len(shape.linear_modules().keys() - {shape.layout.output, shape.layout.down})
    readers += 1 if shape.experts > 1 else 0
    residual = 2 * readers if choices.autocast else 2 * choices.residual_bytes
    output = 0 if _output_is_input(shape, choices) else shape.query_width
    kept = residual * shape.hidden + choices.compute_bytes * output
    if shape.experts > 1:
        return kept + _expert_inputs(shape, choices)
    return kept + choices.activation_bytes * shape.intermediate


def _expert_inputs(shape: Shape, choices: Choices) -> int:
    """Inputs of both products of each expert that a token visits."""
    return expert_bytes(choices) * shape.active_experts * (shape.hidden + shape.intermediate)


def _lora_inputs(shape: Shape, choices: Choices) -> float:
    """Inputs of A and of B for every adapted layer, and the dropout's mask."""
    modules = shape.target_modules(choices.targets)
    adapter = choices.stack.adapter_bytes
    each = 2 if choices.autocast else adapter
    kept: float = each * choices.rank * len(modules)
    if choices.dora:
        kept += _dora_products(choices) * sum(outputs for _, outputs in modules.values())
    if experts_adapted(shape, choices):
        kept += _expert_inputs(shape, choices) + choices.compute_bytes * shape.hidden
    widths = [inputs for inputs, _ in modules.values()]
    if choices.dropout > 0:
        # Every layer's dropped input is its own tensor.
        return kept + (each + _dropout_bytes(choices)) * sum(widths)
    if adapter != choices.activation_bytes or each != adapter:
        # peft casts the input to the adapter's type (lora/layer.py, _cast_input_dtype) and
        # autocast casts it back, for each layer anew.
        return kept + each * sum(widths)
    shared = {_shared_input(shape, name): inputs for name, (inputs, _) in modules.items()}
    if _output_is_input(shape, choices):
        shared.pop(shape.layout.output, None)
    return kept + each * sum(shared.values())


def dropped_queries_bytes(shape: Shape, choices: Choices) -> int:
    """What dropout keeps of one token for the adapted of q, k and v in one layer."""
    if not choices.has_lora or choices.dropout == 0:
        return 0
    adapted = shape.target_modules(choices.targets).keys() & set(shape.layout.queries)
    return _dropout_bytes(choices) * shape.hidden * len(adapted)


def _dora_products(choices: Choices) -> int:
    """Bytes of the base's and of the adapter's output, which the magnitude scales."""
    if choices.autocast:
        return 2 * 2
    adapter = choices.stack.adapter_bytes
    return adapter + (adapter if choices.dropout > 0 else choices.activation_bytes)


def _dropout_bytes(choices: Choices) -> int:
    """One byte an element on CUDA (aten/native/Dropout.cpp, native_dropout); the CPU keeps what it
    multiplies by, in the type of the dropped input."""
    return 1 if choices.device == "cuda" else choices.stack.adapter_bytes


def _adapter_inputs(shape: Shape, choices: Choices) -> float:
    """Of each bottleneck: its input, and its inner width before and after the activation."""
    each = 2 if choices.autocast else choices.stack.adapter_bytes
    return adapters_per_layer(choices) * each * (shape.hidden + 2 * choices.bottleneck)


def _shared_input(shape: Shape, module: str) -> str:
    """One word for modules that read the same tensor."""
    if module in shape.layout.queries:
        return "queries"
    return "inner" if module in shape.layout.inner else module
