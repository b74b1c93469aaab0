"""Cross entropy at labelled positions only, without the logits of a whole batch in memory.

The backbone runs on every token. The head runs on the labelled positions, chunk by chunk, and each
chunk's gradient is computed in the forward pass while its logits are in memory. Rows are padded on
the right and no attention mask is passed: causal attention does not see later positions, so padding
changes nothing, and attention kernels are faster without a mask.
"""

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from ftcli.compat import rows_known_as_padded
from ftcli.errors import ModelError
from ftcli.kernels.attention import attention_for
from ftcli.kernels.autocast import autocast_type
from ftcli.kernels.head import Gradients, Head, cross_entropy
from ftcli.memory.activations.head_bytes import LOSS_CHUNK_POSITIONS, positions_of
from ftcli.models.batches import Batch, of_tensors
from ftcli.models.text_forward import (
    few_ids,
    head_input,
    is_close,
    read_at_head,
    text_forward,
    unknown_head,
)
from ftcli.models.virtual_tokens import backbone_inputs, causal_model, virtual_tokens


def head_of(model: PreTrainedModel) -> Head:
    """The head of a causal language model, with the scale and softcap that follow it."""
    form = text_forward(model)
    head: Any = model.get_submodule(form.head)
    return Head(head.weight, getattr(head, "bias", None), form.scale, form.softcap)


def require_known_head(model: PreTrainedModel) -> None:
    """Raise ModelError if a model's logits are not those of `head_of`, or depend on later tokens.

    For a model in evaluation mode: dropout would make two passes differ.
    """
    ids = few_ids(model)
    with torch.no_grad():
        text_forward(model)
        expected = model(input_ids=ids, use_cache=False).logits
        if not expected.isfinite().all():
            return  # broken weights, which every score of it shows
        _require_causal(model, ids, expected)
        if _is_head_known(model, ids, expected):
            return
        read_at_head(model)
        if _is_head_known(model, ids, expected):
            return
    raise unknown_head(model, "they are not those of its head")


def _is_head_known(model: PreTrainedModel, ids: Tensor, expected: Tensor) -> bool:
    return is_close(expected, head_of(model).logits(_hidden(model, of_tensors(ids, ids))))


def _require_causal(network: PreTrainedModel, ids: Tensor, logits: Tensor) -> None:
    """Raise ModelError if logits of the first half depend on the tokens of the second."""
    half = ids.shape[1] // 2
    other = torch.cat((ids[:, :half], ids[:, :-half]), dim=1)
    before = logits[:, :half]
    after = network(input_ids=other, use_cache=False).logits[:, :half]
    # Experts get tokens in another order, which changes the rounding.
    is_exact = before.dtype == torch.float32 and autocast_type(before) is None
    if not is_close(before, after, 1e-3 if is_exact else 0.02):
        raise ModelError(
            "not_a_decoder",
            f"{type(network).__name__}: what it predicts depends on later tokens, so it is no "
            "decoder, and ftcli cannot train it",
        )


def row_losses(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood and number of labels of each row, without gradient.

    Returns two [rows] tensors (fp32 and int64).
    """
    with torch.no_grad():
        hidden = _hidden(model, batch).flatten(0, 1)
        head = head_of(causal_model(model))
        losses = [
            cross_entropy(head, hidden[places], targets)
            for places, targets in zip(
                _padded_to_chunks(batch.sources).split(LOSS_CHUNK_POSITIONS),
                batch.targets.split(LOSS_CHUNK_POSITIONS),
                strict=True,
            )
        ]
    counts = torch.bincount(batch.rows, minlength=batch.row_count)
    each = torch.cat([*losses, hidden.new_empty(0, dtype=torch.float32)])
    return torch.stack([part.sum() for part in each.split(counts.tolist())]), counts


def add_loss_to_forward(model: PreTrainedModel) -> None:
    """Let the model's forward also take the fields of a Batch, and return its summed loss.

    Wrappers of the model (DDP, FSDP2, compile) then see one ordinary forward. Other calls are
    unchanged.
    """
    own = model.forward

    @wraps(getattr(own, "__func__", own))  # generate inspects its signature
    def forward(self: PreTrainedModel, *arguments: Any, **inputs: Any) -> Any:
        if "targets" in inputs:
            return summed_loss(self, Batch(**inputs))
        return own(*arguments, **inputs)

    model.forward = MethodType(forward, model)


def summed_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Negative log-likelihood summed over the labels of a micro-batch, differentiable."""
    hidden = _hidden(model, batch).flatten(0, 1)
    # On two threads, the gradient of indexing is summed in any order; index_select's is not.
    hidden = hidden.index_select(0, _padded_to_chunks(batch.sources))
    hidden = hidden.to(autocast_type(hidden) or hidden.dtype)
    head = head_of(causal_model(model))
    loss: Tensor = _HeadLoss.apply(
        hidden, head.weight, head.bias, batch.targets, head.scale, head.softcap
    )
    return loss


def _padded_to_chunks(places: Tensor) -> Tensor:
    """[labels] → [positions of all chunks]; the padding is any position, without loss."""
    return F.pad(places, (0, positions_of(len(places)) - len(places)))


def _hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What the head reads at the ids [rows, tokens, hidden], without virtual tokens."""
    network = causal_model(model)
    if batch.layout is None:
        with rows_known_as_padded():
            found = head_input(network, backbone_inputs(model, batch.input_ids))
        return found[:, -batch.input_ids.shape[1] :]
    assert not virtual_tokens(model)
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.positions, "use_cache": False}
    text_forward(network)  # measured with the model's own attention, before ours is set
    with attention_for(model, batch.layout):
        return head_input(network, inputs | {"layout": batch.layout})


class _HeadLoss(torch.autograd.Function):
    """Head product and cross entropy by chunks; saves gradients instead of logits.

    Shapes: hidden [n, hidden], weight [vocab, hidden], bias [vocab] or None, targets [n or fewer];
    further positions are padding, without loss.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, scale, softcap):  # type: ignore[no-untyped-def]
        head = Head(weight, bias, scale, softcap)
        wants = ctx.needs_input_grad[:3]
        total = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if wants[0] else None
        weight_grad = torch.zeros_like(weight) if wants[1] else None
        bias_grad = torch.zeros_like(bias) if wants[2] else None
        for start in range(0, len(hidden), LOSS_CHUNK_POSITIONS):
            part = slice(start, start + LOSS_CHUNK_POSITIONS)
            own = None if hidden_grad is None else hidden_grad[part]
            gradients = Gradients(own, weight_grad, bias_grad) if any(wants) else None
            total += cross_entropy(head, hidden[part], targets[part], gradients).sum()
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        # In place: nothing else uses them, and one is as large as the head's weight.
        scaled = [None if g is None else g.mul_(upstream) for g in ctx.saved_tensors]
        return (*scaled, None, None, None)
