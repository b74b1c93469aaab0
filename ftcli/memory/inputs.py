"""What the layers keep for the gradients of trained weights: their inputs, and copies of weights.

Counted by tests/memory, as the items of ftcli.memory.activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, assert_never

from ftcli.memory.adapted import Update, Updates, adapted
from ftcli.memory.choices import Choices
from ftcli.memory.shapes import Shape
from ftcli.memory.trained import (
    adapters_per_layer,
    expert_tensors,
    experts_adapted,
    trains_embeddings,
)

Reach = Literal["embeddings", "queries", "keys", "output", "inner", "end"]


def first_trained(shape: Shape, choices: Choices) -> Reach:
    """What the first trained weight of the first layer reads, or makes (a prefix: keys)."""
    match choices.mode:
        case "full" | "prompt-tuning":
            return "embeddings"
        case "prefix-tuning":
            return "keys"
        case "bottleneck":
            return "end" if choices.placement == "mlp" else "output"
        case "lora" | "qlora":
            return _first_adapted(shape, choices)
        case _:
            assert_never(choices.mode)


def _first_adapted(shape: Shape, choices: Choices) -> Reach:
    if trains_embeddings(shape, choices):
        return "embeddings"
    names = {update.name for update in adapted(shape, choices).first}
    if names & set(shape.layout.queries):
        return "queries"
    if shape.layout.output in names:
        return "output"
    return "end" if names == {shape.layout.down} else "inner"


def unreached_layers(shape: Shape, choices: Choices) -> int:
    """Layers before the first trained weight: no gradient goes back into them."""
    if not choices.has_lora or trains_embeddings(shape, choices):
        return 0
    return adapted(shape, choices).first_layer


def all_trained_inputs(shape: Shape, choices: Choices) -> float:
    """Bytes of one token that all layers together keep for the gradients of trained weights."""
    if not choices.has_lora:
        return shape.layers * trained_inputs(shape, choices)
    kinds = adapted(shape, choices).kinds
    return sum(layers * _lora_inputs(shape, choices, updates) for updates, layers in kinds)


def trained_inputs(shape: Shape, choices: Choices) -> float:
    """Bytes of one token that a layer keeps for the gradients of its trained weights: the layer
    that keeps most."""
    match choices.mode:
        case "full":
            return _full_inputs(shape, choices)
        case "lora" | "qlora":
            kinds = adapted(shape, choices).kinds
            return max(_lora_inputs(shape, choices, updates) for updates, _ in kinds or (((), 0),))
        case "bottleneck":
            return _adapter_inputs(shape, choices)
        case "prefix-tuning" | "prompt-tuning":
            return 0
        case _:
            assert_never(choices.mode)


def kept_weights_bytes(shape: Shape, choices: Choices) -> tuple[int, int]:
    """Copies of weights that a backward pass needs, however many tokens there are: of the layer
    that has most, and of all layers."""
    if not choices.has_lora:
        return 0, 0
    found = adapted(shape, choices)
    kinds = [(_kept_weights(shape, choices, updates), layers) for updates, layers in found.kinds]
    total = sum(each * layers for each, layers in kinds)
    return max((each for each, _ in kinds), default=0), total - _unneeded(shape, choices)


def _unneeded(shape: Shape, choices: Choices) -> int:
    """Of those copies in the first layer, what is not kept: of modules that read what needs no
    gradient."""
    reach, layout = _first_adapted(shape, choices), shape.layout
    readers = {
        "embeddings": (),
        "queries": layout.queries,
        "output": (layout.output,),
        "inner": layout.inner,
        "end": (layout.down,),
    }[reach]
    first = [update for update in adapted(shape, choices).first if update.name in readers]
    return _dora_copies(choices, first)


def _kept_weights(shape: Shape, choices: Choices, updates: Updates) -> int:
    copies = _dora_copies(choices, updates)
    if experts_adapted(shape, choices):
        # peft adds the update to all experts before they are used (lora/layer.py, ParamWrapper).
        matrices = sum(each.elements for each in expert_tensors(shape, choices, 0))
        cast = choices.weight_bytes if choices.weight_bytes != choices.stack.adapter_bytes else 0
        copies += choices.weight_bytes * sum(shape.expert_tensors().values()) + cast * matrices
    return copies


def _dora_copies(choices: Choices, updates: Iterable[Update]) -> int:
    """DoRA takes the base's product with the dropped input itself, with a weight that is cast to
    the adapter's type and by autocast back (peft, lora/dora.py)."""
    if not choices.dora or choices.dropout == 0:
        return 0
    each: int = choices.stack.adapter_bytes
    if choices.autocast:
        each = 2
    elif choices.quantization is None and choices.weight_bytes == each:
        each = 0
    return each * sum(update.inputs * update.outputs for update in updates)


def expert_bytes(choices: Choices) -> int:
    """Bytes of one element in stacked experts, whose product autocast does not know
    (transformers/integrations/moe.py, _grouped_mm)."""
    return choices.activation_bytes if choices.stack.linear_experts else choices.weight_bytes


def _output_is_input(shape: Shape, choices: Choices) -> bool:
    """The output that the attention kernel keeps is the tensor that o_proj reads.

    Not so with eager and with our own, which keep no output, nor where q is arranged by heads
    (Phi-3).
    """
    keeps_none = choices.attention == "eager" or choices.own_attention
    return not keeps_none and not shape.fused_projections


def _full_inputs(shape: Shape, choices: Choices) -> float:
    """Inputs of trained linear layers: of q, k, v, of gate and up, of o, and of down."""
    # Autocast casts an fp32 input for each layer that reads it.
    readers = len(shape.linear_modules().keys() - {shape.layout.output, shape.layout.down})
    readers += 1 if shape.experts > 1 else 0
    if choices.liger:
        readers = 2  # the norms cast it
    residual = 2 * readers if choices.autocast else 2 * choices.residual_bytes
    output = 0 if _output_is_input(shape, choices) else shape.query_width
    kept = residual * shape.hidden + choices.compute_bytes * output
    if shape.experts > 1:
        return kept + _expert_inputs(shape, choices)
    return kept + choices.activation_bytes * shape.intermediate


def _expert_inputs(shape: Shape, choices: Choices) -> int:
    """Inputs of both products of each expert that a token visits."""
    return expert_bytes(choices) * shape.active_experts * (shape.hidden + shape.intermediate)


def _input_bytes(choices: Choices) -> int:
    """Bytes of one element that a trained layer of an adapter reads."""
    return 2 if choices.autocast else choices.stack.adapter_bytes


def _lora_inputs(shape: Shape, choices: Choices, updates: Updates) -> float:
    """Inputs of A and of B for every update of a layer, and the dropout's mask."""
    adapter, each = choices.stack.adapter_bytes, _input_bytes(choices)
    kept: float = each * sum(update.rank for update in updates)
    if choices.dora:
        kept += _dora_products(choices) * sum(update.outputs for update in updates)
    if experts_adapted(shape, choices):
        kept += _expert_inputs(shape, choices) + choices.compute_bytes * shape.hidden
    widths = [update.inputs for update in updates]
    if choices.dropout > 0:
        # Every layer's dropped input is its own tensor.
        return kept + (each + _dropout_bytes(choices)) * sum(widths)
    cast = adapter != choices.activation_bytes or each != adapter
    if choices.fused_lora:
        # The node reads what the layer reads, in the type of the product.
        cast = each != choices.residual_bytes and not choices.liger
    if cast:
        # peft casts the input to the adapter's type (lora/layer.py, _cast_input_dtype) and
        # autocast casts it back, again for each layer.
        return kept + each * sum(widths)
    shared = {_shared_input(shape, update.name): update.inputs for update in updates}
    if _output_is_input(shape, choices):
        shared.pop(shape.layout.output, None)
    return kept + each * sum(shared.values())


def dropped_queries_bytes(shape: Shape, choices: Choices) -> int:
    """What dropout keeps of one token for the adapted of q, k and v in the first such layer."""
    if not choices.has_lora or choices.dropout == 0:
        return 0
    names = {update.name for update in adapted(shape, choices).first}
    return _dropout_bytes(choices) * shape.hidden * len(names & set(shape.layout.queries))


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
    each = _input_bytes(choices)
    return adapters_per_layer(choices) * each * (shape.hidden + 2 * choices.bottleneck)


def _shared_input(shape: Shape, module: str) -> str:
    """One word for modules that read the same tensor."""
    if module in shape.layout.queries:
        return "queries"
    return "inner" if module in shape.layout.inner else module
