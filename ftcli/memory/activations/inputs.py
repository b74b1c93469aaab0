"""What the layers keep for the gradients of adapters: their inputs, and copies of weights.

Counted by tests/memory, as the items of ftcli.memory.activations.layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from ftcli.memory.adapted import Update, Updates, adapted
from ftcli.memory.architecture import ATTENTION, Architecture, in_mlp
from ftcli.memory.choices import Choices
from ftcli.memory.trained import block_ends, trains_embeddings


def first_trained(architecture: Architecture, choices: Choices) -> str | None:
    """The module of the first trained layer that the first trained weight is in, or is added to;
    None where the gradient goes back to the embeddings."""
    if trains_embeddings(architecture, choices):
        return None
    match choices.mode:
        case "full" | "prompt-tuning":
            return None
        case "prefix-tuning":
            return ATTENTION
        case "bottleneck":
            return block_ends(architecture.kind_of(0), choices.placement)[0].name
        case "lora" | "qlora":
            first = _first_update(architecture, choices)
            return None if first is None else first.linear.name
        case _:
            assert_never(choices.mode)


def _first_update(architecture: Architecture, choices: Choices) -> Update | None:
    """Of the first layer with updates, the one that runs first."""
    return next(iter(adapted(architecture, choices).first), None)


def unreached_layers(architecture: Architecture, choices: Choices) -> int:
    """Layers before the first trained weight: no gradient goes back into them."""
    if not choices.has_lora or trains_embeddings(architecture, choices):
        return 0
    return adapted(architecture, choices).first_layer


def all_trained_inputs(architecture: Architecture, choices: Choices) -> float:
    """Bytes of one token that all layers together keep for the gradients of trained weights."""
    if not choices.has_lora:
        kinds = enumerate(architecture.kinds)
        return sum(len(k.layers) * trained_inputs(architecture, choices, n) for n, k in kinds)
    return sum(
        alike.layers * _lora_inputs(architecture, choices, alike.kind, alike.updates)
        for alike in adapted(architecture, choices).kinds
    )


def trained_inputs(architecture: Architecture, choices: Choices, kind: int) -> float:
    """Bytes of one token that a layer of this kind keeps for the gradients of its trained weights:
    the layer that keeps most. Full training's are measured with the rest."""
    return _inputs(architecture, choices, kind, (False,) if choices.tiling else (False, True))


def tiled_inputs(architecture: Architecture, choices: Choices, kind: int) -> float:
    """The same of the modules in its MLP, where it runs in tiles."""
    return _inputs(architecture, replace(choices, tiled_mlp=False), kind, (True,))


def _inputs(
    architecture: Architecture, choices: Choices, kind: int, places: tuple[bool, ...]
) -> float:
    """Of modules in the MLP (True) and outside of it (False)."""
    match choices.mode:
        case "lora" | "qlora":
            return max(
                (
                    _lora_inputs(architecture, choices, kind, _within(alike.updates, places))
                    for alike in adapted(architecture, choices).kinds
                    if alike.kind == kind
                ),
                default=0.0,
            )
        case "bottleneck":
            # Of each bottleneck: its input, and its inner width before and after the activation.
            width = architecture.hidden + 2 * choices.bottleneck
            ends = block_ends(architecture.kinds[kind], choices.placement)
            number = sum(in_mlp(each) in places for each in ends)
            return number * _input_bytes(choices) * width
        case "full" | "prefix-tuning" | "prompt-tuning":
            return 0
        case _:
            assert_never(choices.mode)


def _within(updates: Updates, places: tuple[bool, ...]) -> Updates:
    return tuple(each for each in updates if in_mlp(each.linear) in places)


def kept_weights_bytes(architecture: Architecture, choices: Choices) -> tuple[int, int]:
    """Copies of weights that a backward pass needs, however many tokens there are: of the layer
    that has most, and of all layers."""
    if not choices.has_lora:
        return 0, 0
    kinds = [
        (_dora_copies(choices, alike.updates), alike.layers)
        for alike in adapted(architecture, choices).kinds
    ]
    total = sum(each * layers for each, layers in kinds)
    # In the first layer none of modules whose input needs no gradient.
    unneeded = _dora_copies(choices, _first_readers(architecture, choices))
    return max((each for each, _ in kinds), default=0), total - unneeded


def _first_readers(architecture: Architecture, choices: Choices) -> list[Update]:
    """Updates of the first trained layer whose modules read what needs no gradient."""
    first = _first_update(architecture, choices)
    if first is None or trains_embeddings(architecture, choices):
        return []
    updates = adapted(architecture, choices).first
    return [each for each in updates if each.linear.reads == first.linear.reads]


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
    return each * sum(update.linear.elements for update in updates)


def _input_bytes(choices: Choices) -> int:
    """Bytes of one element that a trained layer of an adapter reads."""
    return 2 if choices.autocast else choices.stack.adapter_bytes


def _lora_inputs(
    architecture: Architecture, choices: Choices, kind: int, updates: Updates
) -> float:
    """Inputs of A and of B for every update of a layer, and the dropout's mask."""
    adapter, each = choices.stack.adapter_bytes, _input_bytes(choices)
    kept: float = each * sum(update.rank for update in updates)
    if choices.dora:
        kept += _dora_products(choices) * sum(update.linear.outputs for update in updates)
    widths = [update.linear.inputs for update in updates]
    if choices.dropout > 0:
        # Every layer's dropped input is its own tensor.
        return kept + (each + _dropout_bytes(choices)) * sum(widths)
    cast = adapter != choices.activation_bytes or each != adapter
    if choices.quantization == "nf4" and choices.autocast and choices.device == "cuda":
        # peft asks torch.is_autocast_enabled(), which is about CUDA (lora/bnb.py).
        cast = each != choices.activation_bytes
    if choices.fused_lora:
        # The node reads what the layer reads, in the type of the product.
        cast = each != choices.residual_bytes and not choices.liger
    if cast:
        # peft casts the input to the adapter's type (lora/layer.py, _cast_input_dtype) and
        # autocast casts it back, again for each layer.
        return kept + each * sum(widths)
    saved = _saved_inputs(architecture, choices, kind)
    read = {update.linear.reads: update.linear.inputs for update in updates}
    return kept + each * sum(width for number, width in read.items() if number not in saved)


def _saved_inputs(architecture: Architecture, choices: Choices, kind: int) -> tuple[int, ...]:
    """Tensors that are saved whether or not an adapter reads them: the output that the attention
    kernel keeps is the tensor that the output projection reads, but ours keeps none."""
    if choices.own_attention:
        return ()
    return architecture.saved(choices.way(architecture.kinds[kind])).kinds[kind].inputs


def unreached_masks_bytes(architecture: Architecture, choices: Choices) -> int:
    """What dropout keeps of one token for modules of the first layer whose input needs no
    gradient."""
    if not choices.has_lora or choices.dropout == 0:
        return 0
    readers = _first_readers(architecture, choices)
    return _dropout_bytes(choices) * sum(update.linear.inputs for update in readers)


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
