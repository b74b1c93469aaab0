"""RMSNorm as one node of autograd, which keeps its input as it came and one number a token.

transformers makes nine nodes of it: the backward pass wants the input in fp32 and, where the
weight is trained, the normed input too. And where autocast would cast the output for each product
that reads it, the node casts it once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ftcli.kernels.autocast import autocast_type
from ftcli.kernels.liger import liger_norm

Norm = Callable[[Tensor, Tensor, float, bool, torch.dtype | None], Tensor]


def fuse_norms(model: nn.Module, *, liger: bool = False) -> int:
    """Give each RMSNorm one node, ours or Liger's; returns how many those are.

    Whether a norm is Llama's or Gemma's is found by its numbers; one that is neither is left.
    """
    node = _through_liger if liger else _through_ours
    found, read = 0, _read_by_products(model)
    for module in model.modules():
        if not type(module).__name__.endswith("RMSNorm") or _epsilon(module) is None:
            continue
        for plus_one in (False, True):
            forward = partial(_forward, node, module, plus_one, module in read)
            if _is_same(module, forward):
                module.forward = forward
                found += 1
                break
    return found


def _read_by_products(model: nn.Module) -> set[nn.Module]:
    """Norms whose output nothing else reads (names of transformers 5: Gemma's others go into the
    sum, and those of queries and keys are rotated)."""
    found = set()
    for layer in model.modules():
        norms = {n: m for n, m in layer.named_children() if n.endswith("_layernorm")}
        if "input_layernorm" in norms:
            four = "pre_feedforward_layernorm" in norms
            second = "pre_feedforward_layernorm" if four else "post_attention_layernorm"
            found |= {norms["input_layernorm"], norms[second]}
    return found


def _is_same(module: Any, forward: Callable[[Tensor], Tensor]) -> bool:
    """Tried on numbers that are not drawn: a run's random generators stay as they are."""
    weight = module.weight
    probe = torch.linspace(-40, 50, 3 * len(weight), device=weight.device).sin()
    probe = probe.view(3, -1).to(weight.dtype)
    with torch.no_grad():
        expected, found = module(probe), forward(probe)
    # What is rounded to 16 bits at another place differs by a last digit.
    within = torch.finfo(expected.dtype).eps * 4
    same = expected.dtype == found.dtype
    return same and torch.allclose(found, expected, rtol=within, atol=within)


def _epsilon(module: Any) -> float | None:
    found: float | None = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found


def _forward(node: Norm, module: Any, plus_one: bool, cast: bool, hidden: Tensor) -> Tensor:
    kind = autocast_type(hidden) if cast else None
    epsilon = _epsilon(module)
    assert epsilon is not None
    return node(hidden, module.weight, epsilon, plus_one, kind)


def _through_ours(
    hidden: Tensor, weight: Tensor, epsilon: float, plus_one: bool, kind: torch.dtype | None
) -> Tensor:
    if not torch.is_grad_enabled():  # a node costs as much as the norm of a few tokens
        return _normed(hidden, weight, epsilon, plus_one, kind)[0]
    found: Tensor = _Norm.apply(hidden, weight, epsilon, plus_one, kind)
    return found


def _through_liger(
    hidden: Tensor, weight: Tensor, epsilon: float, plus_one: bool, kind: torch.dtype | None
) -> Tensor:
    if hidden.dtype != weight.dtype:  # it returns the type of its input, transformers the wider
        return _through_ours(hidden, weight, epsilon, plus_one, kind)
    normed = liger_norm(hidden, weight, epsilon, plus_one)
    return normed if kind is None else normed.to(kind)


def _normed(
    hidden: Tensor, weight: Tensor, epsilon: float, plus_one: bool, kind: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The normed input, and 1 / rms of each token [..., 1] in fp32."""
    exact = hidden.float()
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    inverse = length.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
    normed = exact * inverse if exact is hidden else exact.mul_(inverse)
    if plus_one:
        return normed.mul_(1 + weight.float()).to(kind or hidden.dtype), inverse
    found = normed.to(hidden.dtype) * weight
    return found if kind is None else found.to(kind), inverse


class _Norm(torch.autograd.Function):
    """x / rms(x), times w in the types of both (Llama), or times 1 + w in fp32 (Gemma).

    Shapes: x [..., width], w [width]. The result is cast, if `kind` is one.
    """

    @staticmethod
    def forward(ctx, hidden, weight, epsilon, plus_one, kind):  # type: ignore[no-untyped-def]
        found, inverse = _normed(hidden, weight, epsilon, plus_one, kind)
        ctx.save_for_backward(hidden, weight, inverse)
        ctx.plus_one = plus_one
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        hidden, weight, inverse = ctx.saved_tensors
        exact, weight_grad = hidden.float(), None
        if ctx.needs_input_grad[1]:
            normed = exact * inverse
            if not ctx.plus_one:
                normed = normed.to(hidden.dtype)
            weight_grad = (upstream * normed).flatten(0, -2).sum(dim=0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, weight_grad, None, None, None
        factor = 1 + weight.float() if ctx.plus_one else weight
        wanted = (upstream * factor).float()
        along = torch.linalg.vecdot(wanted, exact)[..., None]
        along *= inverse.pow(3).div_(-hidden.shape[-1])
        found = wanted.mul_(inverse).addcmul_(exact, along)
        return found.to(hidden.dtype), weight_grad, None, None, None
