"""Weights, adapters and optimizer states, which stay through the step; and copies of weights, which
do not: cast by autocast, dequantised, or summed by an adapter.

Copies are counted by tests/memory on CPU, in transformers 5.24 and peft 0.21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from ftcli.memory.activations.inputs import unreached_layers
from ftcli.memory.adapted import adapted
from ftcli.memory.architecture import Architecture, LayerKind
from ftcli.memory.choices import Choices, Quantization
from ftcli.memory.trained import (
    adapter_bytes,
    l2_sp_bytes,
    optimizer_bytes,
    trainable_parameters,
)

# Bytes of one quantised weight without its scales.
_CODE_BYTES: dict[Quantization, float] = {"nf4": 0.5, "gptq4": 0.5, "int8": 1}

# NF4 of bitsandbytes 0.50 (functional.py, quantize_4bit): one fp32 absmax for 64 weights; double
# quantisation makes it one byte, with one fp32 absmax for 256 of those.
_ABSMAX_BYTES = 4 / 64
_DOUBLE_ABSMAX_BYTES = 1 / 64 + 4 / (64 * 256)
# GPTQ in groups of 128 weights: a 16-bit scale and a 4-bit zero each.
_GPTQ_GROUP_BYTES = 2.5 / 128


@dataclass(frozen=True)
class Static:
    """Bytes that stay through the step."""

    weights: int
    quantization: int
    adapter: int
    optimizer: int
    l2_sp: int
    """Starting weights that the trained ones are pulled to."""
    managed: int
    """Optimizer states in CUDA managed memory: they move from a full GPU to RAM, and torch
    does not count them."""

    @property
    def total_bytes(self) -> int:
        return self.weights + self.quantization + self.adapter + self.optimizer + self.l2_sp


def static_bytes(architecture: Architecture, choices: Choices) -> Static:
    optimizer, managed = optimizer_bytes(architecture, choices)
    return Static(
        weights=weights_bytes(architecture, choices),
        quantization=quantization_bytes(architecture, choices),
        adapter=adapter_bytes(architecture, choices),
        optimizer=optimizer,
        l2_sp=l2_sp_bytes(architecture, choices),
        managed=managed,
    )


def ends_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of embeddings and head that are in RAM instead of on the GPU."""
    if not choices.embedding_offload:
        return 0
    return architecture.embedding_parameters * choices.weight_bytes


def weights_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of the base weights, without the constants of their quantisation.

    Only linear layers inside the transformer layers are quantised: embeddings, head, norms,
    biases and stacked experts keep their type. Towers stay in RAM, in 16 bits.
    """
    towers = architecture.tower_parameters * (2 if choices.device == "cpu" else 0)
    parameters = architecture.parameters - architecture.tower_parameters
    if choices.embedding_offload:
        parameters -= architecture.embedding_parameters
    if choices.quantization is None:
        return parameters * choices.weight_bytes + towers
    quantised = architecture.quantised_parameters
    rest = parameters - quantised
    kept = kept_dequantised_bytes(architecture, choices) if choices.keeps_dequantised else 0
    codes = round(quantised * _CODE_BYTES[choices.quantization])
    return codes + rest * choices.weight_bytes + kept + towers


def kept_dequantised_bytes(architecture: Architecture, choices: Choices) -> int:
    """All 4-bit weights in the type that their products are computed in."""
    return architecture.quantised_parameters * (4 if choices.precision == "fp32" else 2)


def quantization_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of the scales that turn codes into weights."""
    match choices.quantization:
        case None:
            return 0
        case "nf4":
            each = _DOUBLE_ABSMAX_BYTES if choices.double_quantization else _ABSMAX_BYTES
        case "gptq4":
            each = _GPTQ_GROUP_BYTES
        case "int8":
            # One fp32 scale for each output: 4 / in, for the least input.
            each = 4 / min(each.inputs for kind in architecture.kinds for each in kind.linear)
    return round(architecture.quantised_parameters * each)


def forward_copies_bytes(architecture: Architecture, choices: Choices) -> int:
    """16-bit copies of fp32 weights that autocast keeps to the end of the forward pass.

    It keeps those of trained weights (aten/autocast_mode.cpp, cached_cast); the backward pass
    keeps those of frozen ones too, without checkpointing.
    """
    if not choices.autocast:
        return 0
    if choices.mode == "full":
        return 2 * _cast_parameters(architecture, choices)
    adapters = _adapter_matrices(architecture, choices) if choices.stack.adapter_bytes == 4 else 0
    frozen_fp32 = choices.quantization is None and choices.weight_bytes == 4
    if not frozen_fp32 or choices.checkpointing:
        return 2 * adapters
    first = unreached_layers(architecture, choices)
    reached = sum(
        kind.linear_parameters * sum(layer >= first for layer in kind.layers)
        for kind in architecture.kinds
    )
    return 2 * (adapters + reached)


def backward_copies_bytes(architecture: Architecture, choices: Choices) -> int:
    """Copies while the last layer runs backward: its own, and those kept for all others."""
    own = layer_copies_bytes(architecture, choices)
    kept = 0 if choices.checkpointing else forward_copies_bytes(architecture, choices)
    # In full training the layer's own casts are among those kept.
    return max(own, kept) if choices.mode == "full" else own + kept


def layer_copies_bytes(architecture: Architecture, choices: Choices) -> int:
    """Copies of weights that one layer makes while it runs backward: of the whole layer where
    autocast casts them, else the largest dequantised matrix."""
    cast = choices.autocast and choices.weight_bytes == 4
    if choices.mode == "full":
        return 2 * max(_cast_in_layer(kind, choices) for kind in architecture.kinds) if cast else 0
    copies = 0
    if choices.quantization is not None:
        copies = dequantised_bytes(architecture, choices)
    elif cast and choices.checkpointing:
        copies = 2 * max(kind.linear_parameters for kind in architecture.kinds)
    return max(copies, dora_bytes(architecture, choices)) if choices.checkpointing else copies


def dora_bytes(architecture: Architecture, choices: Choices) -> int:
    """The norm of a weight and its update in the forward pass, for the largest layer (peft,
    lora/dora.py): the update, the same scaled, the sum and the weight in the adapter's type, and
    the identity matrix that A and B are multiplied with."""
    if not (choices.has_lora and choices.dora):
        return 0
    each = choices.stack.adapter_bytes
    cast = choices.quantization is not None or choices.weight_bytes != each
    identity = 2 if choices.autocast else each
    kinds = adapted(architecture, choices).kinds
    updates = {update.linear for alike in kinds for update in alike.updates}
    sizes = {(linear.inputs, linear.outputs) for linear in updates}
    return max(
        (4 if cast else 3) * each * inputs * outputs + identity * inputs * inputs
        for inputs, outputs in sizes
    )


def _cast_parameters(architecture: Architecture, choices: Choices) -> int:
    return sum(len(kind.layers) * _cast_in_layer(kind, choices) for kind in architecture.kinds)


def _cast_in_layer(kind: LayerKind, choices: Choices) -> int:
    """Weights of the modules whose products autocast knows: not those of stacked experts, but of
    their router."""
    experts = kind.expert_parameters if choices.stack.linear_experts else 0
    routers = [each.number * min(each.rows, each.columns) for each in kind.experts[:1]]
    router = max((n for n in kind.others if n in routers), default=0)
    return kind.linear_parameters + experts + router


def _adapter_matrices(architecture: Architecture, choices: Choices) -> int:
    """Trained weights of linear layers that a method adds, which autocast casts."""
    if choices.stack.trainable_parameters is not None:
        return choices.stack.trainable_parameters
    match choices.mode:
        case "lora" | "qlora":
            return adapted(architecture, choices).parameters
        case "bottleneck":
            return trainable_parameters(architecture, choices)
        case "prefix-tuning":
            embedding = choices.virtual_tokens * architecture.kinds[0].cached_width // 2
            return (
                trainable_parameters(architecture, choices) - embedding if choices.projection else 0
            )
        case "prompt-tuning" | "full":
            return 0
        case _:
            assert_never(choices.mode)


def dequantised_bytes(architecture: Architecture, choices: Choices) -> int:
    """The largest quantised matrix as its products take it: in the type that the weights were
    quantised from, and cast where they compute in another (bitsandbytes 0.50, MatMul4Bit)."""
    if choices.quantization is None or choices.keeps_dequantised:
        return 0
    each = 2
    if choices.quantization == "nf4" and not choices.kbit:
        stored, computed = choices.weight_bytes, 4 if choices.precision == "fp32" else 2
        each = stored + (computed if computed != stored else 0)
    return each * architecture.largest_matrix
