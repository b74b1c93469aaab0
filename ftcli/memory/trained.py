"""Which tensors a method trains: their sizes, and what their gradients and states take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from ftcli.errors import ModelError, did_you_mean
from ftcli.memory.adapted import adapted, adapted_stacks
from ftcli.memory.architecture import Architecture, LayerKind, Linear, in_mlp
from ftcli.memory.choices import Choices, Placement

# bitsandbytes 0.50, optim/optimizer.py: two 8-bit states, each with one fp32 absmax for 256
# (blocksize); smaller tensors stay fp32 (min_8bit_size), larger ones are paged (get_state_buffer).
_STATE_8BIT_BYTES = 2 + 2 * 4 / 256
_STATE_FP32_BYTES = 8
_SMALLEST_8BIT_ELEMENTS = 4096
_SMALLEST_PAGED_ELEMENTS = 100_000

# Starting weights that ftcli.training.l2_sp casts together: 16 MB of fp32.
L2_SP_PIECE_ELEMENTS = 2**22


@dataclass(frozen=True)
class Tensors:
    """Some trained tensors of one size."""

    elements: int
    count: int
    element_bytes: int
    embedding: bool = False
    """It is the weight of an nn.Embedding."""

    @property
    def total_elements(self) -> int:
        return self.elements * self.count

    @property
    def total_bytes(self) -> int:
        return self.total_elements * self.element_bytes


def trained_tensors(architecture: Architecture, choices: Choices) -> Iterator[Tensors]:
    """Every trained tensor.

    Raises ModelError: `target_modules`, `layers`, `rank_pattern`, `modules_to_save`.
    """
    if choices.mode == "full":
        yield from _full_tensors(architecture, choices.weight_bytes)
        return
    each = choices.stack.adapter_bytes
    if choices.stack.trainable_parameters is not None:
        yield Tensors(choices.stack.trainable_parameters, 1, each)
    else:
        yield from _method_tensors(architecture, choices, each)
    yield from _saved_modules(architecture, choices)


def trainable_parameters(architecture: Architecture, choices: Choices) -> int:
    return sum(tensors.total_elements for tensors in trained_tensors(architecture, choices))


def adapter_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of what a method adds to the base model."""
    if choices.mode == "full":
        return 0
    return gradient_bytes(architecture, choices)


def gradient_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of all gradients: each has the type of its weight."""
    return sum(tensors.total_bytes for tensors in trained_tensors(architecture, choices))


def l2_sp_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of the starting weights that training.l2_sp keeps next to the trained ones: of a full
    training in the type of the model's files, of an adapter in its own (ftcli.training.l2_sp)."""
    if not choices.l2_sp:
        return 0
    if choices.mode == "full":
        return (
            gradient_bytes(architecture, choices)
            // choices.weight_bytes
            * min(choices.weight_bytes, architecture.stored_bytes)
        )
    return gradient_bytes(architecture, choices)


def l2_sp_piece_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of the piece of them that a step casts to the type of the trained weights."""
    cast = (
        choices.l2_sp
        and choices.mode == "full"
        and architecture.stored_bytes < choices.weight_bytes
    )
    return choices.weight_bytes * L2_SP_PIECE_ELEMENTS if cast else 0


def mlp_gradient_bytes(architecture: Architecture, choices: Choices, kind: int) -> int:
    """Bytes of the gradients of what is trained in one MLP, of the kind's layer that has most."""
    each = choices.stack.adapter_bytes
    match choices.mode:
        case "full":
            return choices.weight_bytes * sum(
                one.elements for one in architecture.kinds[kind].linear if in_mlp(one)
            )
        case "lora" | "qlora":
            return each * max(
                (
                    sum(one.parameters for one in alike.updates if in_mlp(one.linear))
                    for alike in adapted(architecture, choices).kinds
                    if alike.kind == kind
                ),
                default=0,
            )
        case "bottleneck":
            weights = (2 * architecture.hidden + 1) * choices.bottleneck + architecture.hidden
            return 0 if choices.placement == "attention" else each * weights
        case "prefix-tuning" | "prompt-tuning":
            return 0
        case _:
            assert_never(choices.mode)


def trains_embeddings(architecture: Architecture, choices: Choices) -> bool:
    """Where the head is the embedding matrix, either name trains the one matrix that both are
    (ftcli.models.methods, ensure_weight_tying)."""
    saved = choices.modules_to_save
    return (
        choices.mode == "full"
        or "embed_tokens" in saved
        or (architecture.tied and "lm_head" in saved)
    )


def trains_head(architecture: Architecture, choices: Choices) -> bool:
    saved = choices.modules_to_save
    return (
        choices.mode == "full"
        or "lm_head" in saved
        or (architecture.tied and "embed_tokens" in saved)
    )


def saved_bytes(choices: Choices) -> int:
    """Bytes of one weight of a module trained whole next to an adapter."""
    return choices.stack.saved_bytes or choices.weight_bytes


def head_weight_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of one weight of the head."""
    saved = choices.mode != "full" and trains_head(architecture, choices)
    return saved_bytes(choices) if saved else choices.weight_bytes


def head_gradient_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of the head's gradient, which exists before that of any layer."""
    if not trains_head(architecture, choices):
        return 0
    return architecture.vocab * architecture.hidden * head_weight_bytes(architecture, choices)


def embedding_gradient_bytes(architecture: Architecture, choices: Choices) -> int:
    """Bytes of the embeddings' gradient, which comes after those of all layers."""
    if not trains_embeddings(architecture, choices):
        return 0
    each = choices.weight_bytes if choices.mode == "full" else saved_bytes(choices)
    return architecture.vocab * architecture.hidden * each


def optimizer_bytes(architecture: Architecture, choices: Choices) -> tuple[int, int]:
    """Bytes of the optimizer's states: (in GPU memory, in managed memory)."""
    match choices.optimizer:
        case "sgd":
            return 0, 0
        case "adamw":
            return 2 * gradient_bytes(architecture, choices), 0
        case "adamw-8bit" | "paged-adamw-8bit":
            return _states_8bit(architecture, choices)
        case _:
            assert_never(choices.optimizer)


def _full_tensors(architecture: Architecture, each: int) -> Iterator[Tensors]:
    for kind in architecture.kinds:
        layers = len(kind.layers)
        sizes = [linear.elements for linear in kind.linear]
        sizes += [experts.elements for experts in kind.experts]
        for elements in (*sizes, *kind.others):
            yield Tensors(elements, layers, each)
    matrix = architecture.vocab * architecture.hidden
    yield Tensors(matrix, 1, each, embedding=True)
    if not architecture.tied:
        yield Tensors(matrix, 1, each)
    if architecture.head_bias:
        yield Tensors(architecture.vocab, 1, each)
    for elements in architecture.outer:
        yield Tensors(elements, 1, each)


def _method_tensors(architecture: Architecture, choices: Choices, each: int) -> Iterator[Tensors]:
    match choices.mode:
        case "lora" | "qlora":
            yield from _lora_tensors(architecture, choices, each)
        case "bottleneck":
            for kind in architecture.kinds:
                block_ends(kind, choices.placement)
            count = architecture.layers * adapters_per_layer(choices)
            matrix = choices.bottleneck * architecture.hidden
            yield Tensors(matrix, 2 * count, each)
            yield Tensors(choices.bottleneck, count, each)
            yield Tensors(architecture.hidden, count, each)
        case "prefix-tuning":
            yield from _prefix_tensors(architecture, choices, each)
        case "prompt-tuning":
            yield Tensors(choices.virtual_tokens * architecture.hidden, 1, each, embedding=True)
        case "full":
            raise AssertionError("full training has no tensors of its own")
        case _:
            assert_never(choices.mode)


def _lora_tensors(architecture: Architecture, choices: Choices, each: int) -> Iterator[Tensors]:
    for alike in adapted(architecture, choices).kinds:
        for update in alike.updates:
            yield Tensors(update.rank * update.linear.inputs, alike.layers, each)
            yield Tensors(update.rank * update.linear.outputs, alike.layers, each)
            if choices.dora:
                yield Tensors(update.linear.outputs, alike.layers, each)
    stacks = adapted_stacks(architecture, choices.layers) if choices.experts else []
    for stack, count in Counter(stack for _, stack, _ in stacks).items():
        ranks = choices.rank * stack.number
        yield Tensors(ranks * stack.rows, count, each)
        yield Tensors(ranks * stack.columns, count, each)


def block_ends(kind: LayerKind, placement: Placement = "both") -> list[Linear]:
    """The last linear modules of the attention and of the MLP, which return to hidden width.

    Raises ModelError where a layer has none.
    """
    parts = [each.name.split(".")[0] for each in kind.linear]
    # The MLP runs last. A layer whose linear modules are of one part has none, maybe experts.
    mlp = parts[-1] if len({*parts}) > 1 else None
    ends = {
        part == mlp: each
        for part, each in zip(parts, kind.linear, strict=True)
        if each.outputs == kind.linear[0].inputs
    }
    wanted = {"attention": [False], "mlp": [True], "both": [False, True]}[placement]
    for each in wanted:
        if each not in ends:
            raise ModelError(
                "method_refused",
                "bottleneck adapters follow the last linear layers of attention and MLP, and the "
                f"{'MLP' if each else 'attention'} of a layer has none; set method.placement to "
                "the other, or use LoRA",
            )
    return [ends[each] for each in wanted]


def adapters_per_layer(choices: Choices) -> int:
    return 2 if choices.placement == "both" else 1


def _prefix_tensors(architecture: Architecture, choices: Choices, each: int) -> Iterator[Tensors]:
    """peft 0.21, tuners/prefix_tuning/model.py: keys and values of every layer, or the network
    that makes them, whose inner width is that of the keys (utils/other.py)."""
    width = architecture.kinds[0].cached_width // 2
    states = 2 * architecture.layers * width
    if not choices.projection:
        yield Tensors(choices.virtual_tokens * states, 1, each, embedding=True)
        return
    yield Tensors(choices.virtual_tokens * width, 1, each, embedding=True)
    yield Tensors(width * width, 1, each)
    yield Tensors(width, 1, each)
    yield Tensors(width * states, 1, each)
    yield Tensors(states, 1, each)


def _saved_modules(architecture: Architecture, choices: Choices) -> Iterator[Tensors]:
    """Copies of whole modules (peft, ModulesToSaveWrapper), and of the head's bias."""
    for name in choices.modules_to_save:
        if name not in ("embed_tokens", "lm_head"):
            raise ModelError(
                "target_modules",
                f"modules_to_save: {name!r} cannot be sized"
                f"{did_you_mean(name, ['embed_tokens', 'lm_head'])}; known: embed_tokens, lm_head",
            )
    if choices.modules_to_save and architecture.tied and architecture.head_bias:
        raise ModelError(
            "modules_to_save",
            "head and embeddings are one matrix here, and the head has a bias, which PEFT drops "
            "where it ties them; leave modules_to_save out",
        )
    each, matrix = saved_bytes(choices), architecture.vocab * architecture.hidden
    if trains_embeddings(architecture, choices):
        yield Tensors(matrix, 1, each, embedding=True)
    if trains_head(architecture, choices):
        if not architecture.tied:
            yield Tensors(matrix, 1, each)
        if architecture.head_bias:
            yield Tensors(architecture.vocab, 1, each)


def _states_8bit(architecture: Architecture, choices: Choices) -> tuple[int, int]:
    paged = choices.optimizer == "paged-adamw-8bit"
    on_card = managed = 0.0
    for tensors in trained_tensors(architecture, choices):
        # transformers 5.24, trainer.py create_optimizer: embeddings keep fp32 states.
        fp32 = tensors.embedding or tensors.elements < _SMALLEST_8BIT_ELEMENTS
        each = _STATE_FP32_BYTES if fp32 else _STATE_8BIT_BYTES
        size = tensors.total_elements * each
        if paged and tensors.elements >= _SMALLEST_PAGED_ELEMENTS:
            managed += size
        else:
            on_card += size
    return round(on_card), round(managed)
