"""Memory outside the training step: validation, answers, and the merge on the CPU."""

from __future__ import annotations

from dataclasses import replace

from ftcli.memory.choices import FROZEN_MODES, Choices
from ftcli.memory.copies import dequantised_bytes, largest_matrix
from ftcli.memory.head import head_bytes
from ftcli.memory.shapes import Shape
from ftcli.memory.static import static_bytes, weights_bytes
from ftcli.memory.step import CUBLAS_BYTES

# Rows at once in ftcli.inference.generation, and ftcli.config.recipe's default length of an answer.
ANSWERED_ROWS = 64
# Tokens of prompts that are read at once, so that reading them needs little memory.
PREFILLED_TOKENS = 1024
ANSWER_TOKENS = 256
# Tokens of cache that are little beside any model: 0.75 GB of SmolLM2-135M's in fp32.
LEAST_CACHE_TOKENS = 16_384

# Positions whose logits `ftcli merge` holds, of each of two models (ftcli.export.merge).
_COMPARED_POSITIONS = 1024


def moments(shape: Shape, choices: Choices) -> dict[str, int]:
    """Bytes allocated at each of them; the merge's are the host's memory."""
    return {
        "validation": validation_bytes(shape, choices),
        "answers": answering_bytes(shape, choices),
        "merge_on_cpu": merge_cpu_bytes(shape, choices),
    }


def validation_bytes(shape: Shape, choices: Choices) -> int:
    """While a micro-batch is scored in the middle of a training: no gradients, one layer at a
    time, and the optimizer's states beside it."""
    static = static_bytes(shape, choices).total_bytes
    return static + _forward_bytes(shape, choices) + head_bytes(shape, choices)


def answering_bytes(shape: Shape, choices: Choices) -> int:
    """While a trained model answers a batch of prompts of full length; no optimizer is there."""
    rows, tokens = answered_rows(shape, choices), choices.seq_len + ANSWER_TOKENS
    answered = replace(choices, micro_batch=rows, seq_len=tokens)
    static = static_bytes(shape, answered)
    # fp32 logits of the last position of each row, and the copy that a token is drawn from.
    logits = 2 * 4 * rows * shape.vocab
    model = static.total_bytes - static.optimizer - static.hold
    read = replace(answered, micro_batch=1, seq_len=min(PREFILLED_TOKENS, rows * tokens))
    return model + cache_bytes(shape, answered) + _forward_bytes(shape, read) + logits


def answered_rows(shape: Shape, choices: Choices) -> int:
    """How many prompts of full length are answered at once."""
    one = replace(choices, micro_batch=1, seq_len=1)
    room = cache_tokens(weights_bytes(shape, choices), cache_bytes(shape, one))
    return min(ANSWERED_ROWS, max(1, room // (choices.seq_len + ANSWER_TOKENS)))


def cache_tokens(weights: int, one: int) -> int:
    """Tokens of cache at once, where one takes so many bytes: as many as a step reads as fast as
    it reads the weights. More would make steps slower than it makes them fewer."""
    return max(LEAST_CACHE_TOKENS, weights // one)


def cache_bytes(shape: Shape, choices: Choices) -> int:
    """Keys and values of every position in every layer."""
    return 2 * shape.layers * shape.kv_width * choices.tokens * choices.compute_bytes


def merge_cpu_bytes(shape: Shape, choices: Choices) -> int:
    """The whole model, one weight's update beside it in fp32, and the logits compared; 0 for
    methods that cannot be merged."""
    if choices.mode in FROZEN_MODES:
        return 0
    element = 4 if choices.precision == "fp32" else 2
    update = 2 * 4 * largest_matrix(shape)
    return shape.parameters * element + update + 2 * 4 * _COMPARED_POSITIONS * shape.vocab


def _forward_bytes(shape: Shape, choices: Choices) -> int:
    """The residual stream, the widest tensors of one layer, and a dequantised matrix."""
    mlp = shape.mlp_matrices * shape.intermediate * choices.activation_bytes
    attention = 2 * (shape.query_width + shape.kv_width) * choices.compute_bytes
    widest = 2 * shape.hidden * choices.residual_bytes + max(mlp, attention)
    return CUBLAS_BYTES + choices.tokens * widest + dequantised_bytes(shape, choices)
