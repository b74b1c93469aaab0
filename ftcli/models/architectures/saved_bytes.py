"""Count what each layer saves for backward, while a model runs on fake tensors."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ftcli.memory.architecture import ATTENTION, Attention, Norm

OUTSIDE = -1
"""Number of what runs in no layer."""


@dataclass
class LayerRun:
    """What one layer did; bytes of all tokens."""

    kept: int = 0
    norms: int = 0
    before: dict[str, int] = field(default_factory=dict)
    temporaries: int = 0
    linear: dict[str, int] = field(default_factory=dict)
    """Linear modules in the order in which they ran, with the storage that each read."""
    differentiable: set[str] = field(default_factory=set)
    """Linear modules whose output had a gradient."""
    norm_calls: list[Norm] = field(default_factory=list)
    attention_calls: list[Attention] = field(default_factory=list)
    window: int | None = None


class Recorder(TorchDispatchMode):
    """Follows one forward and backward pass of a model; use as a context, after `watch`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.layers: dict[int, LayerRun] = defaultdict(LayerRun)
        self.shared_saved = self.shared_passed = self.last_norm = 0
        self.after_head: set[str] = set()
        """Operations of the forward pass after the head's product."""
        self.scaled_embeddings = False
        self.saved: set[int] = set()
        self._tokens = tokens
        self._count = count(1)
        self._layer = OUTSIDE
        self._in_norm = self._in_head = self._after_layers = self._ended = False
        self._shared: set[int] = set()
        self._sizes: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._live = self._peak = self._start = 0
        self._backward = OUTSIDE
        self._weights: set[int] = set()
        self._handles: list[Any] = []
        self._embedded: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:  # two calls in three, and none makes a tensor
            return found
        if self._in_head:
            self.after_head.add(func.overloadpacket.__name__)
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        of_weights = bool(read) and all(self.storage_of(each) in self._weights for each in read)
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                self._track(each, of_weights)
        return found

    def _track(self, tensor: Tensor, of_weights: bool) -> None:
        """Count a new storage; copies of weights as nothing, since no tokens change their size."""
        storage: Any = tensor.untyped_storage()
        key = id(storage)
        if key in self._sizes or key in self._weights:
            return
        self._sizes[key] = 0 if of_weights else storage.nbytes()
        self._numbers[key] = next(self._count)
        if of_weights:
            self._weights.add(self._numbers[key])
        weakref.finalize(storage, self._free, key)
        self._live += self._sizes[key]
        self._peak = max(self._peak, self._live)

    def _free(self, key: int) -> None:
        self._live -= self._sizes.pop(key)
        del self._numbers[key]

    def storage_of(self, tensor: Tensor) -> int:
        """A number of the tensor's storage that no other has: memory addresses are used again."""
        key = id(tensor.untyped_storage())
        return self._numbers.get(key, key)

    def pack(self, tensor: Tensor) -> Tensor:
        """Called for each tensor that autograd saves."""
        key = self.storage_of(tensor)
        if self._ended or key in self._weights or key in self.saved:
            return tensor
        self.saved.add(key)
        size = tensor.untyped_storage().nbytes()
        if key in self._shared:
            self.shared_saved += size
        elif self._layer != OUTSIDE:
            layer = self.layers[self._layer]
            layer.kept += size
            layer.norms += size if self._in_norm else 0
        elif self._after_layers and not self._in_head:
            self.last_norm += size
        return tensor

    def watch(self, model: nn.Module, layers: list[nn.Module], head: nn.Module | None) -> None:
        """Register hooks on a model whose stack is `layers`."""
        for each in (*model.parameters(), *model.buffers()):
            self._weights.add(self.storage_of(each))
        for number, layer in enumerate(layers):
            self._watch_layer(number, layer)
        for module in model.modules():
            if "norm" in type(module).__name__.lower() and not any(module.children()):
                self._hook(module, self._enter_norm, self._leave_norm)
        if head is not None:
            self._hook(head, self._enter_head, lambda *_: None)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def embedded(self, output: Tensor) -> None:
        """The embeddings have returned this."""
        self._embedded = self.storage_of(output)

    def attends(self, call: Attention, window: int | None) -> None:
        """The attention kernel is called."""
        if self._layer == OUTSIDE:
            return
        layer = self.layers[self._layer]
        layer.before.setdefault(ATTENTION, layer.kept)
        layer.attention_calls.append(call)
        layer.window = window if window is not None else layer.window

    def end_of_forward(self) -> None:
        """What backward passes save for themselves does not count."""
        self._in_head, self._ended = False, True

    def _hook(
        self, module: nn.Module, before: Callable[..., Any], after: Callable[..., Any]
    ) -> None:
        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _watch_layer(self, number: int, layer: nn.Module) -> None:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._layer = number
            given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            hidden = next((each for each in given if each.requires_grad), None)
            if hidden is not None:
                if number == 0 and self._embedded not in (None, self.storage_of(hidden)):
                    self.scaled_embeddings = True
                hidden.register_hook(lambda _: self._end_backward(number))
            self._share(each for each in given if each is not hidden)

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            self._layer, self._after_layers = OUTSIDE, True
            found = (each for each in tree_leaves(output) if isinstance(each, Tensor))
            hidden = next((each for each in found if each.requires_grad), None)
            if hidden is not None:
                hidden.register_hook(lambda _: self._begin_backward(number))

        self._hook(layer, enter, leave)
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                self._watch_linear(number, name, module)

    def _share(self, tensors: Any) -> None:
        for each in tensors:
            key = self.storage_of(each)
            number = not (each.is_floating_point() or each.is_complex() or each.dtype == torch.bool)
            if number or each.requires_grad or key in self._shared or key in self._weights:
                continue
            self._shared.add(key)
            self.shared_passed += each.untyped_storage().nbytes()

    def _watch_linear(self, number: int, name: str, module: nn.Module) -> None:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            layer = self.layers[number]
            read = args[0] if args else next(iter(kwargs.values()))
            layer.before.setdefault(name, layer.kept)
            layer.linear.setdefault(name, self.storage_of(read))

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda _: self.layers[number].differentiable.add(name))

        self._hook(module, enter, leave)

    def _enter_norm(self, *_: Any) -> None:
        self._in_norm = True

    def _leave_norm(self, module: nn.Module, args: Any, output: Any) -> None:
        self._in_norm = False
        if self._layer != OUTSIDE and isinstance(output, Tensor):
            elements = output.numel() // self._tokens
            rows = max(1, elements // output.shape[-1])
            norm = Norm(elements, rows, isinstance(module, nn.LayerNorm))
            self.layers[self._layer].norm_calls.append(norm)

    def _enter_head(self, *_: Any) -> None:
        self._in_head = True

    def _begin_backward(self, number: int) -> None:
        self._end_backward(self._backward)
        self._backward, self._start, self._peak = number, self._live, self._live

    def _end_backward(self, number: int) -> None:
        # One tensor is a layer's output and the next one's input; either hook may come first.
        if number == OUTSIDE or number != self._backward:
            return
        self.layers[number].temporaries = self._peak - self._start
        self._backward = OUTSIDE


class FusedAttention(torch.autograd.Function):
    """What a fused attention kernel saves; it computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[rows, heads, tokens, width] → the same; mask [rows or 1, heads or 1, tokens, keys]."""
        # As the kernels arrange it: as the queries, mostly so that the output projection reads this
        # tensor and no copy.
        rows, heads, tokens, width = query.shape
        output = torch.empty_like(query)
        if value.shape[-1] != width:
            output = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        # sdpa makes numbers of a boolean mask, again in each layer, and keeps them
        # (aten/native/transformers/attention.cpp, convert_boolean_attn_mask).
        numbers = None if mask is None else mask.new_empty(mask.shape, dtype=query.dtype)
        ctx.save_for_backward(query, key, value, output, sums, numbers)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class TiledMlp(torch.autograd.Function):
    """What an MLP in tiles saves; it computes nothing."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, dtype: torch.dtype | None) -> Tensor:
        """[rows, tokens, hidden] → the same, in this type."""
        ctx.save_for_backward(hidden)
        return torch.empty_like(hidden, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (hidden,) = ctx.saved_tensors
        return torch.empty_like(hidden), None


class GroupedProduct(torch.autograd.Function):
    """What torch's grouped_mm saves; it computes nothing.

    torch 2.13 knows the real one's sizes in bf16 only (_meta_registrations.py).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor) -> Tensor:
        """[rows, in] and [groups, in, out] → [rows, out]."""
        trained = ctx.needs_input_grad[1]
        ctx.save_for_backward(rows if trained else None, weights)
        return rows.new_empty(rows.shape[0], weights.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, weights = ctx.saved_tensors
        back = gradient.new_empty(gradient.shape[0], weights.shape[1])
        return back, None if rows is None else torch.empty_like(weights)
