"""What lies on the card through the whole step: weights, adapters and optimizer states."""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.memory.choices import Choices, Quantization
from ftcli.memory.shapes import Shape
from ftcli.memory.trained import adapter_bytes, hold_bytes, optimizer_bytes

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
    hold: int
    """Starting weights that the trained ones are pulled to."""
    managed: int
    """Optimizer states in CUDA managed memory: they leave a full card for the host, and torch
    does not count them."""

    @property
    def total_bytes(self) -> int:
        return self.weights + self.quantization + self.adapter + self.optimizer + self.hold


def static_bytes(shape: Shape, choices: Choices) -> Static:
    optimizer, managed = optimizer_bytes(shape, choices)
    return Static(
        weights=weights_bytes(shape, choices),
        quantization=quantization_bytes(shape, choices),
        adapter=adapter_bytes(shape, choices),
        optimizer=optimizer,
        hold=hold_bytes(shape, choices),
        managed=managed,
    )


def weights_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes of the base weights, without the constants of their quantisation.

    Only linear layers inside the transformer layers are quantised: embeddings, head, norms,
    biases and stacked experts keep their type.
    """
    if choices.quantization is None:
        return shape.parameters * choices.weight_bytes
    quantised = quantised_parameters(shape, choices)
    rest = shape.parameters - quantised
    kept = kept_dequantised_bytes(shape, choices) if choices.keeps_dequantised else 0
    return round(quantised * _CODE_BYTES[choices.quantization]) + rest * choices.weight_bytes + kept


def kept_dequantised_bytes(shape: Shape, choices: Choices) -> int:
    """All 4-bit weights in the type that their products are computed in."""
    return quantised_parameters(shape, choices) * (4 if choices.precision == "fp32" else 2)


def quantised_parameters(shape: Shape, choices: Choices) -> int:
    experts = shape.expert_parameters if choices.stack.linear_experts else 0
    return shape.linear_parameters + experts


def quantization_bytes(shape: Shape, choices: Choices) -> int:
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
            each = 4 / min(inputs for inputs, _ in shape.linear_modules().values())
    return round(quantised_parameters(shape, choices) * each)
