"""The head and the loss: logits are the widest tensor of a training step."""

from __future__ import annotations

from ftcli.memory.activations.layers import last_norm_bytes
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import Choices
from ftcli.memory.trained import head_weight_bytes, trains_head

LOSS_CHUNK_POSITIONS = 512
"""Labelled positions that go through the head together in ftcli.models.loss."""

CHUNK_ROUNDED = 32
"""Positions come in multiples of so many: oneDNN makes and keeps 2 MB of code for each number."""

HEAD_TILE_TOKENS = {"cpu": 2048, "cuda": 32_768}
"""Tokens of the vocabulary whose logits exist together (ftcli.kernels.head): in the caches of a
CPU; on a GPU enough for all its multiprocessors, as in TRL, for a sixteenth of the launches."""

COPIED_TOKENS = 8192
"""The same of a head in RAM, whose tiles are copied to the GPU."""

# A tile of logits in TRL 1.16, which is as wide where the vocabulary is smaller
# (trl/kernels/chunked_logprob.py, trl/trainer/utils.py).
_TRL_TILE_POSITIONS = 4096
_TRL_TILE_VOCABULARY = 32768

# Of a chunk's logits that are capped: their products, what is capped of them, and the slope there.
_BYTES_PER_CAPPED_LOGIT = 12


def head_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of the last norm, the logits, their loss and the gradient it hands to the layers.

    Counted by tests/memory, the chunked losses to 2%.
    """
    fused = choices.stack.fused_loss_bytes_per_hidden
    if fused is not None:
        return (
            _head_copy_bytes(architecture, choices) + fused * architecture.hidden * choices.tokens
        )
    if choices.loss == "full":
        return _head_copy_bytes(architecture, choices) + _full_loss_bytes(architecture, choices)
    norm = _last_norm_bytes(architecture, choices)
    if choices.stack.trl_head:
        return norm + _normed_bytes(architecture, choices) + _trl_head_bytes(architecture, choices)
    return norm + _label_bytes(architecture, choices)


def positions_of(labelled: int) -> int:
    """Positions whose logits are made for so many labelled ones."""
    return labelled + -labelled % CHUNK_ROUNDED


def _full_loss_bytes(architecture: Architecture, choices: Choices) -> int:
    """Logits of all tokens, labelled or not (transformers/loss/loss_utils.py)."""
    per_logit = choices.stack.full_loss_bytes_per_logit + (
        4 if architecture.head == "softcapped" else 0
    )
    return choices.tokens * (per_logit * architecture.vocab + 6 * architecture.hidden)


def _last_norm_bytes(architecture: Architecture, choices: Choices) -> int:
    """What the norm before the head keeps."""
    return round(choices.tokens * last_norm_bytes(architecture, choices))


def _normed_bytes(architecture: Architecture, choices: Choices) -> int:
    """What it returns; gone where the labelled positions are taken out of it."""
    return choices.tokens * choices.residual_bytes * architecture.hidden


def _label_bytes(architecture: Architecture, choices: Choices) -> int:
    """The largest of three phases: labelled positions are taken out, are cast, and go through the
    head together with their gradient."""
    residual, compute = choices.residual_bytes, choices.compute_bytes
    elements = architecture.hidden * positions_of(choices.label_tokens)
    taken = _normed_bytes(architecture, choices) + elements * residual
    cast = elements * (residual + compute) if compute != residual else 0
    return max(taken, cast, 2 * elements * compute + _chunked_bytes(architecture, choices))


def _trl_head_bytes(architecture: Architecture, choices: Choices) -> int:
    """Hidden states of labelled positions, a tile of logits, and gradients that are summed in fp32
    and cast at the end of the backward pass."""
    residual, compute = choices.residual_bytes, choices.compute_bytes
    weight = head_weight_bytes(architecture, choices)
    labelled = choices.label_tokens
    positions = min(labelled, _TRL_TILE_POSITIONS)
    columns = min(architecture.vocab, _TRL_TILE_VOCABULARY)
    tile = positions * _TRL_TILE_VOCABULARY * compute
    summed = [(labelled * architecture.hidden, residual)]
    if trains_head(architecture, choices):
        summed.append((architecture.vocab * architecture.hidden, weight))
    gradients = sum(4 * elements for elements, _ in summed)
    last_casts = sum(elements * each for elements, each in summed if each != 4)
    # The head's part of a tile, cast; the next one is made while the last is still there.
    part = columns * architecture.hidden * compute if compute != weight else 0
    parts = min(part, max(0, architecture.vocab - columns) * architecture.hidden * compute)
    cast = positions * architecture.hidden * compute if compute != residual else 0
    selected = labelled * architecture.hidden * residual
    return selected + tile + gradients + cast + part + max(parts, last_casts)


def _chunked_bytes(architecture: Architecture, choices: Choices) -> int:
    """A chunk of positions while it goes through the vocabulary, tile by tile: its largest phase;
    of a head that is trained, what all tiles keep until the end, and the gradient."""
    positions = min(positions_of(choices.label_tokens), LOSS_CHUNK_POSITIONS)
    largest = _tile_bytes(architecture, choices, positions)
    if not trains_head(architecture, choices):
        return largest
    weight = head_weight_bytes(architecture, choices)
    kept = choices.compute_bytes * positions * architecture.vocab
    largest = max(largest, _weight_gradient_bytes(architecture, choices, positions))
    return weight * architecture.vocab * architecture.hidden + kept + largest


def _tile_bytes(architecture: Architecture, choices: Choices, positions: int) -> int:
    """A tile of logits in fp32, before and after that in the type of the arithmetic; and what adds
    up in fp32 for the hidden states."""
    compute, width = choices.compute_bytes, _tile_width(architecture, choices)
    tile, part = positions * width, width * architecture.hidden
    weight = head_weight_bytes(architecture, choices)
    cast = 0 if compute == weight else compute * part
    # Copied from RAM, one while the one before is still there.
    copied = 2 * weight * part if choices.embedding_offload else 0
    each = 4 if compute == 4 else 4 + compute
    capped = _BYTES_PER_CAPPED_LOGIT if architecture.head == "softcapped" else each
    made = max(compute * tile + cast, capped * tile)
    kept = (
        compute * tile if trains_head(architecture, choices) else 0
    )  # counted with those of all tiles
    added = (4 if compute == 4 else compute + 4) * positions * architecture.hidden
    used = each * tile - kept + max(cast, added)
    return copied + 4 * positions * architecture.hidden + max(made - kept, used)


def _tile_width(architecture: Architecture, choices: Choices) -> int:
    tokens = COPIED_TOKENS if choices.embedding_offload else HEAD_TILE_TOKENS[choices.device]
    return min(architecture.vocab, tokens)


def _weight_gradient_bytes(architecture: Architecture, choices: Choices, positions: int) -> int:
    """A tile's share of the head's gradient, and the hidden states that it is a product of."""
    compute, weight = choices.compute_bytes, head_weight_bytes(architecture, choices)
    part = _tile_width(architecture, choices) * architecture.hidden
    cast = 0 if compute == weight else weight * part
    return compute * part + cast + (4 + compute) * positions * architecture.hidden


def _head_copy_bytes(architecture: Architecture, choices: Choices) -> int:
    """A copy of the head's weight in the type of the arithmetic, where the two differ."""
    if choices.compute_bytes == head_weight_bytes(architecture, choices):
        return 0
    return architecture.vocab * architecture.hidden * choices.compute_bytes
