"""The phases of a training step, of which the largest is the peak; and validation, answers, merge.

Logits are freed before the first layer's backward pass, and activations before the optimizer
step, so the items of different phases never add up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ftcli.memory.activations.head_bytes import head_bytes
from ftcli.memory.activations.layers import (
    layers_bytes,
    prefix_cache_bytes,
    ram_bytes,
    rebuilt_layer_bytes,
    temporaries_bytes,
)
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import FROZEN_MODES, Choices
from ftcli.memory.static import (
    backward_copies_bytes,
    dequantised_bytes,
    dora_bytes,
    forward_copies_bytes,
    layer_copies_bytes,
    static_bytes,
    weights_bytes,
)
from ftcli.memory.trained import (
    embedding_gradient_bytes,
    gradient_bytes,
    head_gradient_bytes,
    l2_sp_piece_bytes,
    trained_tensors,
)

# cuBLAS, one handle: CUBLAS_WORKSPACE_CONFIG :4096:2:16:8 (aten/cuda/CublasHandlePool.cpp).
CUBLAS_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024


@dataclass(frozen=True)
class Phase:
    """Bytes in addition to the static items in one phase of the step."""

    gradients: int = 0
    activations: int = 0
    logits: int = 0
    workspace: int = 0

    @property
    def total_bytes(self) -> int:
        return self.gradients + self.activations + self.logits + self.workspace


def step_phases(architecture: Architecture, choices: Choices) -> dict[str, Phase]:
    """The five phases of a step, in their order."""
    gradients = _all_gradients_bytes(architecture, choices)
    held = gradients if choices.gradient_accumulation > 1 else 0
    kept = layers_bytes(architecture, choices)
    layer = rebuilt_layer_bytes(architecture, choices)
    forward_copies = CUBLAS_BYTES + forward_copies_bytes(architecture, choices)
    own_copies = max(dora_bytes(architecture, choices), dequantised_bytes(architecture, choices))
    cache = prefix_cache_bytes(architecture, choices)
    head_gradient = head_gradient_bytes(architecture, choices)
    return {
        "end of forward": Phase(
            gradients=held,
            activations=kept + cache,
            workspace=forward_copies + own_copies,
        ),
        "head and loss": Phase(
            gradients=held,
            # ftcli.models.loss gives the cache up before the head runs.
            activations=kept + (cache if choices.loss == "full" else 0),
            logits=head_bytes(architecture, choices),
            workspace=forward_copies,
        ),
        "backward of one layer": Phase(
            gradients=held + head_gradient if architecture.tied else max(held, head_gradient),
            activations=kept + layer,
            workspace=CUBLAS_BYTES + backward_copies_bytes(architecture, choices),
        ),
        "end of backward": _end_of_backward(architecture, choices),
        "optimizer step": Phase(
            gradients=gradients,
            workspace=CUBLAS_BYTES
            # One after the other: the pull to the start comes before the step.
            + max(
                gradients if _copies_in_step(choices) else 0,
                l2_sp_piece_bytes(architecture, choices),
            ),
        ),
    }


def _end_of_backward(architecture: Architecture, choices: Choices) -> Phase:
    """The first layer, of which all is still there, whether rebuilt or kept; or the embeddings
    after it, whose gradient is added to one that is there: of the head, if it is the same matrix,
    or of the micro-batches before."""
    gradients = _all_gradients_bytes(architecture, choices)
    embeddings = embedding_gradient_bytes(architecture, choices)
    stepped = choices.stack.steps_in_backward
    held = choices.gradient_accumulation > 1 and not stepped
    # Where the head is the same matrix, its gradient waits for that of the embeddings.
    waiting = embeddings if architecture.tied and (held or stepped) else 0
    last_gradient = embeddings if held or (architecture.tied and not stepped) else 0
    # Published runs of full training take as much as all gradients and the first layer together.
    to_come = 0 if choices.mode == "full" or architecture.tied or held else embeddings
    first = Phase(
        gradients=gradients + waiting - to_come,
        activations=rebuilt_layer_bytes(
            architecture, replace(choices, gradient_checkpointing=True)
        ),
        workspace=CUBLAS_BYTES + layer_copies_bytes(architecture, choices),
    )
    last = Phase(
        gradients=gradients + waiting + last_gradient,
        activations=choices.residual_bytes * architecture.hidden * choices.tokens,
        workspace=CUBLAS_BYTES,
    )
    return max(first, last, key=lambda phase: phase.total_bytes)


def _all_gradients_bytes(architecture: Architecture, choices: Choices) -> int:
    """Gradients after the backward pass."""
    if choices.stack.steps_in_backward:
        tensors = trained_tensors(architecture, choices)
        return max(each.elements * each.element_bytes for each in tensors)
    return gradient_bytes(architecture, choices)


def _copies_in_step(choices: Choices) -> bool:
    """torch's foreach AdamW makes one copy of the square roots (optim/adam.py)."""
    return choices.optimizer == "adamw" and choices.stack.foreach_optimizer


# Rows of a batch in ftcli.inference.generation, and ftcli.config's default length of an answer.
ANSWERED_ROWS = 64
# Prompts are read so many tokens at a time, so that reading them needs little memory.
PREFILLED_TOKENS = 1024
ANSWER_TOKENS = 256
# So many tokens of cache are small next to any model: 0.75 GB of SmolLM2-135M's in fp32.
LEAST_CACHE_TOKENS = 16_384

# Positions whose logits `ftcli merge` stores, of each of two models (ftcli.export.merge_run).
_COMPARED_POSITIONS = 1024


def outside_step_bytes(architecture: Architecture, choices: Choices) -> dict[str, int]:
    """Bytes allocated in validation, in answering, in a merge (RAM), and in RAM for a training on
    a GPU."""
    return {
        "validation": validation_bytes(architecture, choices),
        "answers": answering_bytes(architecture, choices),
        "merge_on_cpu": merge_cpu_bytes(architecture, choices),
        "ram": ram_bytes(architecture, choices),
    }


def validation_bytes(architecture: Architecture, choices: Choices) -> int:
    """While a micro-batch is scored in the middle of a training: no gradients, one layer at a
    time, and the optimizer's states."""
    static = static_bytes(architecture, choices).total_bytes
    return static + _forward_bytes(architecture, choices) + head_bytes(architecture, choices)


def answering_bytes(architecture: Architecture, choices: Choices) -> int:
    """While a trained model answers a batch of prompts of full length; no optimizer is there."""
    rows, tokens = answered_rows(architecture, choices), choices.seq_len + ANSWER_TOKENS
    answered = replace(choices, micro_batch=rows, seq_len=tokens)
    static = static_bytes(architecture, answered)
    # fp32 logits of the last position of each row, and the copy that a token is drawn from.
    logits = 2 * 4 * rows * architecture.vocab
    model = static.total_bytes - static.optimizer - static.l2_sp
    read = replace(answered, micro_batch=1, seq_len=min(PREFILLED_TOKENS, rows * tokens))
    return model + cache_bytes(architecture, answered) + _forward_bytes(architecture, read) + logits


def answered_rows(architecture: Architecture, choices: Choices) -> int:
    """Prompts of full length that are answered in one batch."""
    one = replace(choices, micro_batch=1, seq_len=1)
    room = cache_tokens(weights_bytes(architecture, choices), cache_bytes(architecture, one))
    return min(ANSWERED_ROWS, max(1, room // (choices.seq_len + ANSWER_TOKENS)))


def cache_tokens(weights: int, one: int) -> int:
    """Tokens of cache, where one takes so many bytes: as many as a step reads as fast as
    it reads the weights. More would make steps slower than it makes them fewer."""
    return max(LEAST_CACHE_TOKENS, weights // max(one, 1))


def cache_bytes(architecture: Architecture, choices: Choices) -> int:
    """Keys and values of every position in every layer."""
    return architecture.cached_width * choices.tokens * choices.compute_bytes


def merge_cpu_bytes(architecture: Architecture, choices: Choices) -> int:
    """The whole model, one weight's update in fp32, and the logits compared; 0 for
    methods that cannot be merged."""
    if choices.mode in FROZEN_MODES:
        return 0
    element = 4 if choices.precision == "fp32" else 2
    update = 2 * 4 * architecture.largest_matrix
    return (
        architecture.parameters * element
        + update
        + 2 * 4 * _COMPARED_POSITIONS * architecture.vocab
    )


def _forward_bytes(architecture: Architecture, choices: Choices) -> int:
    """The residual stream, the widest tensors of one layer, and a dequantised matrix."""
    passing = replace(choices, attention="sdpa")
    widest = max(
        temporaries_bytes(architecture, passing, number)
        for number in range(len(architecture.kinds))
    )
    widest += choices.tokens * 2 * architecture.hidden * choices.residual_bytes
    return CUBLAS_BYTES + round(widest) + dequantised_bytes(architecture, choices)
