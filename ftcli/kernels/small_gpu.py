"""What a small GPU has no room for: hidden states in RAM between the forward and the backward pass,
MLPs that run on a tile of the tokens at a time, and frozen embeddings and head in RAM.

With gradient checkpointing autograd saves the input of each layer, and nothing in a layer: it runs
again in the backward pass. torch's `save_on_cpu` copies all that is saved, tables of positions too,
and waits for each copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import get_device_states, set_device_states
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ftcli.compat import stay_in_place
from ftcli.kernels.autocast import autocast_type
from ftcli.memory.activations.head_bytes import COPIED_TOKENS
from ftcli.memory.activations.layers import TILE_TOKENS
from ftcli.memory.architecture import MLP


def in_ram(hidden: int) -> saved_tensors_hooks:
    """Within the block, saved tensors [..., hidden] are in RAM until the backward pass reads them.

    On a GPU the copies are queued after the work that made the tensor, and before its reading.
    """

    copied: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor] | Tensor:
        if tensor.shape[-1:] != (hidden,) or tensor.dim() < 3:
            return tensor
        if tensor not in copied:  # a norm saves its input twice
            kept = torch.empty(
                tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
            )
            copied[tensor] = kept.copy_(tensor, non_blocking=True)
        return tensor.device, copied[tensor]

    def unpack(packed: tuple[torch.device, Tensor] | Tensor) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, kept = packed
        return kept.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)


def keep_ends_in_ram(model: PreTrainedModel, device: torch.device) -> None:
    """Leave the frozen input embeddings and the head of a model on `device` in RAM.

    Rows of the embeddings are looked up there. Of the head a part at a time is copied to the GPU,
    which ftcli.kernels.head does by itself.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if device.type == "cuda":
        head.weight.data = head.weight.data.pin_memory()
    for module in (embeddings, head):
        module.requires_grad_(False)
        stay_in_place(module)
    embeddings.forward = partial(_look_up, embeddings.forward, device)
    embeddings.output_device = device
    head.forward = partial(_multiply, head)


def _look_up(own: Callable[[Tensor], Tensor], device: torch.device, ids: Tensor) -> Tensor:
    return own(ids.cpu()).to(device)


def _multiply(head: nn.Linear, hidden: Tensor) -> Tensor:
    parts = (part.to(hidden.device, non_blocking=True) for part in head.weight.split(COPIED_TOKENS))
    found = torch.cat([F.linear(hidden, part) for part in parts], dim=-1)
    return found if head.bias is None else found + head.bias.to(hidden.device)


def tile_mlps(model: nn.Module) -> int:
    """Run the MLP of each layer in tiles of TILE_TOKENS; returns how many.

    The backward pass runs the MLP again, a tile at a time. With gradient checkpointing it ran
    again anyway: a layer that is computed again ends where the tiles' input is saved, unless a norm
    after the MLP keeps something too (Gemma 2 and 3), for which it runs once more.
    """
    layers = (each for each in model.modules() if isinstance(each, GradientCheckpointingLayer))
    found = [layer.get_submodule(MLP) for layer in layers]
    for mlp in found:
        mlp.forward = partial(_forward, mlp, mlp.forward)
    return len(found)


Forward = Callable[[Tensor], Tensor]


def _forward(mlp: nn.Module, own: Forward, hidden: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return _by_tiles(own, hidden)
    weights = [each for each in mlp.parameters() if each.requires_grad]
    found: Tensor = _Tiled.apply(_Kept.apply(hidden), own, *weights)
    return found


def _tiles(tensor: Tensor) -> Sequence[Tensor]:
    """[..., width] → views [tokens of a tile, width]."""
    return tensor.flatten(0, -2).split(TILE_TOKENS)


def _by_tiles(forward: Forward, hidden: Tensor) -> Tensor:
    found = torch.cat([forward(tile) for tile in _tiles(hidden)])
    return found.view(*hidden.shape[:-1], -1)


class _Kept(torch.autograd.Function):
    """Saves its input, which `_Tiled` reads from it: a custom function saves after it has run, and
    checkpointing would run the MLP for it."""

    @staticmethod
    def forward(ctx, hidden):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(hidden)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient


class _Tiled(torch.autograd.Function):
    """An MLP on the output of `_Kept` [..., hidden]; the other arguments are its forward and its
    trained weights."""

    @staticmethod
    def forward(ctx, kept, own, *weights):  # type: ignore[no-untyped-def]
        ctx.kept, ctx.own, ctx.weights = kept.grad_fn, own, weights
        ctx.autocast_to = autocast_type(kept)
        ctx.devices, ctx.states = get_device_states(kept)
        ctx.cpu_state = torch.get_rng_state()
        return _by_tiles(own, kept)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (hidden,), weights = ctx.kept.saved_tensors, ctx.weights
        found = hidden.new_empty(hidden.shape)  # contiguous, for views of tiles
        sums: list[Tensor | None] = [None] * len(weights)
        device, dtype = hidden.device.type, ctx.autocast_to
        with (
            torch.random.fork_rng(ctx.devices, device_type=device),
            torch.enable_grad(),
            torch.autocast(device, dtype, enabled=dtype is not None),
        ):
            torch.set_rng_state(ctx.cpu_state)
            set_device_states(ctx.devices, ctx.states, device_type=device)
            for tile, its_gradient, place in zip(
                *map(_tiles, (hidden, gradient, found)), strict=True
            ):
                read = tile.detach().requires_grad_()
                gradients = torch.autograd.grad(
                    ctx.own(read), (read, *weights), its_gradient, allow_unused=True
                )
                place.copy_(gradients[0])
                sums = [_sum(*pair) for pair in zip(sums, gradients[1:], strict=True)]
        return found, None, *sums


def _sum(sum_: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if sum_ is None or gradient is None:
        return gradient if sum_ is None else sum_
    return sum_.add_(gradient)
