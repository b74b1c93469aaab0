"""What lies on the card through the whole step: weights, adapters and optimizer states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from ftcli.shapes import Shape
from ftcli.vram.choices import Choices

# NF4 of bitsandbytes 0.50 (functional.py, quantize_4bit): 4 bits a weight, one fp32 absmax for
# 64 weights; double quantisation makes it one byte, with one fp32 absmax for 256 of those.
NF4_BYTES = 0.5
_ABSMAX_BYTES = 4 / 64
_DOUBLE_ABSMAX_BYTES = 1 / 64 + 4 / (64 * 256)

# bitsandbytes 0.50, optim/optimizer.py: two 8-bit states, each with one fp32 absmax for 256
# (blocksize); smaller tensors stay fp32 (min_8bit_size), larger ones are paged (get_state_buffer).
_STATE_8BIT_BYTES = 2 + 2 * 4 / 256
_STATE_FP32_BYTES = 8
_SMALLEST_8BIT_ELEMENTS = 4096
_SMALLEST_PAGED_ELEMENTS = 100_000


@dataclass(frozen=True)
class Tensors:
    """Some trained tensors of one size."""

    elements: int
    count: int
    embedding: bool = False


@dataclass(frozen=True)
class Static:
    """Bytes that stay through the step."""

    weights: int
    quantization: int
    adapter: int
    optimizer: int
    managed: int
    """Optimizer states in CUDA managed memory: they leave a full card for the host, and torch
    does not count them."""

    @property
    def total_bytes(self) -> int:
        return self.weights + self.quantization + self.adapter + self.optimizer


def static_bytes(shape: Shape, choices: Choices) -> Static:
    optimizer, managed = optimizer_bytes(shape, choices)
    adapter = 0 if choices.mode == "full" else trainable_parameters(shape, choices)
    return Static(
        weights=weights_bytes(shape, choices),
        quantization=quantization_bytes(shape, choices),
        adapter=adapter * choices.stack.adapter_bytes,
        optimizer=optimizer,
        managed=managed,
    )


def weights_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes of the base weights, without the constants of their quantisation.

    Only linear layers inside the transformer layers are quantised: embeddings, head, norms,
    biases and stacked experts keep their type.
    """
    if choices.mode != "qlora":
        return shape.parameters * choices.weight_bytes
    rest = shape.parameters - shape.linear_parameters
    return round(shape.linear_parameters * NF4_BYTES) + rest * choices.weight_bytes


def quantization_bytes(shape: Shape, choices: Choices) -> int:
    """Bytes of the scales that turn NF4 codes into weights."""
    if choices.mode != "qlora":
        return 0
    each = _DOUBLE_ABSMAX_BYTES if choices.double_quantization else _ABSMAX_BYTES
    return round(shape.linear_parameters * each)


def trainable_parameters(shape: Shape, choices: Choices) -> int:
    match choices.mode:
        case "full":
            return shape.parameters
        case "lora" | "qlora":
            return shape.lora_parameters(choices.rank, choices.targets)
        case _:
            assert_never(choices.mode)


def trained_element_bytes(choices: Choices) -> int:
    """Bytes of one trained weight, and so of its gradient."""
    return choices.weight_bytes if choices.mode == "full" else choices.stack.adapter_bytes


def gradient_bytes(shape: Shape, choices: Choices) -> int:
    return trainable_parameters(shape, choices) * trained_element_bytes(choices)


def trained_tensors(shape: Shape, choices: Choices) -> Iterator[Tensors]:
    """Every trained tensor; their elements add up to `trainable_parameters`."""
    if choices.mode != "full":
        for inputs, outputs in shape.target_modules(choices.targets).values():
            yield Tensors(choices.rank * inputs, shape.layers)
            yield Tensors(choices.rank * outputs, shape.layers)
        return
    for inputs, outputs in shape.linear_modules().values():
        yield Tensors(inputs * outputs, shape.layers)
    for elements in shape.expert_tensors().values():
        yield Tensors(elements, shape.layers)
    for elements in shape.layer_vectors():
        yield Tensors(elements, shape.layers)
    yield Tensors(shape.hidden, 1)
    yield Tensors(shape.vocab * shape.hidden, 1, embedding=True)
    if not shape.tied:
        yield Tensors(shape.vocab * shape.hidden, 1)


def optimizer_bytes(shape: Shape, choices: Choices) -> tuple[int, int]:
    """Bytes of the optimizer's states: (in the card's own memory, in managed memory)."""
    match choices.optimizer:
        case "sgd":
            return 0, 0
        case "adamw":
            return 2 * gradient_bytes(shape, choices), 0
        case "adamw-8bit" | "paged-adamw-8bit":
            return _states_8bit(shape, choices)
        case _:
            assert_never(choices.optimizer)


def _states_8bit(shape: Shape, choices: Choices) -> tuple[int, int]:
    paged = choices.optimizer == "paged-adamw-8bit"
    on_card = managed = 0.0
    for tensors in trained_tensors(shape, choices):
        # transformers 5.24, trainer.py create_optimizer: embeddings keep fp32 states.
        fp32 = tensors.embedding or tensors.elements < _SMALLEST_8BIT_ELEMENTS
        each = _STATE_FP32_BYTES if fp32 else _STATE_8BIT_BYTES
        size = tensors.elements * tensors.count * each
        if paged and tensors.elements >= _SMALLEST_PAGED_ELEMENTS:
            managed += size
        else:
            on_card += size
    return round(on_card), round(managed)
