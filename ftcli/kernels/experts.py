"""Mixtures of experts: one autograd function for a layer's frozen experts and their LoRA.

transformers' function keeps each routed row and the dequantised stacks for backward. PEFT adds the
update to the stack of all experts in each forward, and on 4-bit stacks its result is wrong (peft
0.21, tuners/lora/layer.py, ParamWrapper: the update is never removed, and adds up). Here tokens are
sorted by expert, a stack is dequantised again in backward, and an update is two more grouped
products of the routed rows.

Shapes: T tokens, k experts per token, S = T · k routed rows, E experts, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ftcli.compat import gate_experts
from ftcli.kernels.autocast import autocast_type

NAME = "ftcli"
"""Of the function below, in transformers' interface."""
# What transformers' decorator gives a module whose forward it replaces (integrations/moe.py).
TRAITS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")
# torch 2.13 multiplies groups of these, whose matrices begin each row at a multiple of 16 bytes.
GROUPED_TYPES = (torch.float32, torch.bfloat16, torch.float16)
ALIGNMENT = 16
# Attribute of a module of experts while its adapter's forward runs.
UPDATES = "updates_of_experts"


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module of experts runs the function that transformers' interface names.

    Not with a norm after each expert, which is neither linear nor a gate.
    """
    return all(hasattr(module, trait) for trait in TRAITS) and not module.has_post_expert_norm


def stack_names(module: nn.Module) -> tuple[str, str]:
    """Names of a replaceable module's 3-D parameters, in the order of their products."""
    return ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")


def use_own_experts(model: PreTrainedModel) -> int:
    """Replace the forward of each module of experts that can be; returns how many.

    Stacks that are trained in full keep transformers' own.
    """
    found = sum(is_replaceable(module) for module in model.modules())
    if found:
        ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
        model.set_experts_implementation(NAME)
    return found


def use_own_updates(model: nn.Module) -> int:
    """Let the function below add PEFT's updates of stacks; returns the number of modules."""
    layers = [each for each in model.modules() if isinstance(each, ParamWrapper)]
    inner = {each.base_layer for each in layers}
    found = [each for each in layers if each not in inner and is_replaceable(each.get_base_layer())]
    for outermost in found:
        outermost.forward = partial(_with_updates, outermost.get_base_layer(), _nested(outermost))
    return len(found)


def _nested(outermost: ParamWrapper) -> dict[str, ParamWrapper]:
    """Wrappers of one module by the parameter that each of them adapts."""
    found: dict[str, ParamWrapper] = {}
    each: Any = outermost
    while isinstance(each, ParamWrapper):
        found[each.parameter_name] = each
        each = each.base_layer
    return found


def _with_updates(
    experts: nn.Module, wrappers: Mapping[str, ParamWrapper], *inputs: Any, **keywords: Any
) -> Tensor:
    """Forward of the outermost wrapper."""
    experts.__dict__[UPDATES] = wrappers
    try:
        output: Tensor = experts(*inputs, **keywords)
    finally:
        del experts.__dict__[UPDATES]
    return output


def experts_forward(
    module: nn.Module, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Sum of each token's experts by their weights [T, in]: hidden [T, in], the others [T, k]."""
    names = stack_names(module)
    if not is_replaceable(module) or any(map(partial(_is_trained, module), names)):
        theirs: Tensor = ALL_EXPERTS_FUNCTIONS["grouped_mm"](
            module, hidden, top_k_index, top_k_weights
        )
        return theirs
    first, last = (_Product(module, name, hidden) for name in names)
    order = _sorted_by_expert(top_k_index, first.experts)
    factors = (*first.factors, *last.factors)
    output: Tensor = _Experts.apply(hidden, top_k_weights, (first, last), order, *factors)
    return output


def _is_trained(module: nn.Module, name: str) -> bool:
    if is_parametrized(module, name) or not torch.is_grad_enabled():
        return False
    return bool(getattr(module, name).requires_grad)


class _Order(NamedTuple):
    """Routed rows sorted by expert."""

    experts: Tensor
    """[S], of each row."""
    places: Tensor
    """[S], of each row in the router's [T, k]."""
    offsets: Tensor
    """[E], int32: where each expert's rows end."""

    def restored(self, rows: Tensor) -> Tensor:
        """Rows [S, n] in the router's order."""
        found = torch.empty_like(rows)
        found[self.places] = rows
        return found


def _sorted_by_expert(top_k_index: Tensor, experts: int) -> _Order:
    found, places = torch.sort(top_k_index.flatten(), stable=True)
    ids = torch.arange(experts, device=found.device, dtype=found.dtype)
    return _Order(found, places, torch.searchsorted(found, ids, right=True).int())


class _Product:
    """rows [S, in] → rows W_e + s · rows A_e B_e + b_e, where e is the expert of a row.

    Computes in the type that a linear layer would take here.
    """

    def __init__(self, module: Any, name: str, like: Tensor) -> None:
        self.transposed = bool(module.is_transposed)
        self.dequantise = None
        if is_parametrized(module, name):
            (self.dequantise,) = module.parametrizations[name]
            self.weight = module.parametrizations[name].original
            state = self.dequantise.quant_state
            self.experts, stored = state.shape[0], state.dtype
        else:
            self.weight = getattr(module, name)
            self.experts, stored = len(self.weight), self.weight.dtype
        self.autocast = autocast_type(like)
        self.dtype = self.autocast or torch.promote_types(like.dtype, stored)
        bias = getattr(module, f"{name}_bias") if module.has_bias else None
        self.bias = None if bias is None else bias.to(self.dtype)
        self.gate = partial(gate_experts, module)
        self.factors, self.scales = _updates_of(module.__dict__.get(UPDATES, {}).get(name))

    def stack(self) -> Tensor:
        """W [E, in, out]: a view, unless it is in 4 bits or of another type."""
        weight = self.weight if self.dequantise is None else self.dequantise(self.weight)
        weight = weight.to(self.dtype)
        return weight if self.transposed else weight.transpose(1, 2)

    def updates(self, factors: Sequence[Tensor]) -> list[tuple[float, Tensor, Tensor]]:
        """s, A [E, in, r] and B [E, r, out] of each update."""
        found = []
        for scale, down, up in zip(self.scales, factors[::2], factors[1::2], strict=True):
            a = down.to(self.dtype).view(self.experts, -1, down.shape[1]).transpose(1, 2)
            b = up.to(self.dtype).view(len(up), -1, self.experts).permute(2, 1, 0).contiguous()
            found.append((scale, a, b))
        return found

    def outputs(self, rows: Tensor, order: _Order, factors: Sequence[Tensor]) -> Tensor:
        found = grouped_product(rows, self.stack(), order.offsets)
        for scale, a, b in self.updates(factors):
            inner = grouped_product(rows, a, order.offsets)
            found.add_(grouped_product(inner, b, order.offsets), alpha=scale)
        return found if self.bias is None else found.add_(self.bias[order.experts])

    def rows_grad(self, gradient: Tensor, order: _Order, factors: Sequence[Tensor]) -> Tensor:
        """[S, in] of an output's gradient [S, out]."""
        found = grouped_product(gradient, self.stack().transpose(1, 2), order.offsets)
        for scale, a, b in self.updates(factors):
            inner = grouped_product(gradient, b.transpose(1, 2), order.offsets)
            found.add_(grouped_product(inner, a.transpose(1, 2), order.offsets), alpha=scale)
        return found

    def factors_grad(
        self, rows: Tensor, gradient: Tensor, order: _Order, factors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Of A [E · r, in] and B [out, r · E]."""
        found = []
        for scale, a, b in self.updates(factors):
            inner = grouped_product(rows, a, order.offsets)
            inner_grad = grouped_product(gradient, b.transpose(1, 2), order.offsets)
            down = grouped_product(inner_grad.T, rows, order.offsets).mul_(scale)
            up = grouped_product(gradient.T, inner, order.offsets).mul_(scale)
            found += [down.flatten(0, 1), up.permute(1, 2, 0).flatten(1)]
        return [each.to(factor.dtype) for each, factor in zip(found, factors, strict=True)]


def _updates_of(layer: ParamWrapper | None) -> tuple[list[Tensor], list[float]]:
    """A [E · r, in] and B [out, r · E] of each active adapter, and its scale."""
    if layer is None or layer.disable_adapters or layer.merged:
        return [], []
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    factors = [each[name].weight for name in names for each in (layer.lora_A, layer.lora_B)]
    return factors, [layer.scaling[name] for name in names]


def grouped_product(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    """left [S, n] · right [E, n, m] by the group of each row → [S, m]; or the sum over each group's
    rows, left [n, S] · right [S, m] → [E, n, m]."""
    if _groups_on(left.device, left.dtype) and _is_aligned(left) and _is_aligned(right):
        return F.grouped_mm(left, right, offs=offsets)
    ends = [0, *offsets.tolist()]
    groups = [slice(start, end) for start, end in pairwise(ends)]
    if right.dim() == 3:
        return torch.cat([left[group] @ each for group, each in zip(groups, right, strict=True)])
    return torch.stack([left[:, group] @ right[group] for group in groups])


def _groups_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies groups here: on a GPU from Ampere on."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return device.type in ("cpu", "cuda") and dtype in GROUPED_TYPES


def _is_aligned(matrices: Tensor) -> bool:
    row, column = matrices.stride()[-2:]
    stride = max(row, column)
    return min(row, column) == 1 and stride * matrices.element_size() % ALIGNMENT == 0


class _Experts(torch.autograd.Function):
    """What `experts_forward` says, of frozen stacks.

    Saves its inputs, the sorted order and the first product [S, out]; the rest is computed again.
    """

    @staticmethod
    def forward(ctx, hidden, weights, products, order, *factors):  # type: ignore[no-untyped-def]
        first, last = products
        count, top_k = len(first.factors), weights.shape[-1]
        rows = hidden[order.places // top_k].to(first.dtype)
        inner = first.outputs(rows, order, factors[:count])
        outputs = last.outputs(first.gate(inner), order, factors[count:])
        outputs = outputs * weights.flatten()[order.places, None]
        ctx.products = products
        ctx.save_for_backward(hidden, weights, inner, *order, *factors)
        summed = order.restored(outputs).view(len(hidden), top_k, -1).sum(dim=1)
        return summed.to(hidden.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        hidden, weights, inner, *others = ctx.saved_tensors
        order, factors = _Order(*others[:3]), others[3:]
        first, last = ctx.products
        count, tokens = len(first.factors), order.places // weights.shape[-1]
        scales = weights.flatten()[order.places, None]
        gradient = gradient[tokens].to(last.dtype)
        inner, cast = inner.detach().requires_grad_(), first.autocast
        with (
            torch.enable_grad(),
            torch.autocast(hidden.device.type, cast, enabled=cast is not None),
        ):
            gated = first.gate(inner)
        gated_grad = last.rows_grad(gradient, order, factors[count:])
        weights_grad = None
        if ctx.needs_input_grad[1]:
            weights_grad = (gated_grad * gated.detach()).sum(-1, dtype=torch.float32)
            if last.bias is not None:
                weights_grad += (gradient * last.bias[order.experts]).sum(-1, dtype=torch.float32)
            weights_grad = order.restored(weights_grad.to(weights.dtype)).view_as(weights)
        gradient = (gradient * scales).to(last.dtype)
        last_grads = last.factors_grad(gated.detach(), gradient, order, factors[count:])
        (inner_grad,) = torch.autograd.grad(gated, inner, (gated_grad * scales).to(last.dtype))
        first_grads, hidden_grad = [], None
        if count:
            # No name keeps the rows, so that they are gone before their gradient comes.
            first_grads = first.factors_grad(
                hidden[tokens].to(first.dtype), inner_grad, order, factors[:count]
            )
        if ctx.needs_input_grad[0]:
            rows_grad = order.restored(first.rows_grad(inner_grad, order, factors[:count]))
            hidden_grad = rows_grad.view(*weights.shape, -1).sum(dim=1).to(hidden.dtype)
        return hidden_grad, weights_grad, None, None, *first_grads, *last_grads
