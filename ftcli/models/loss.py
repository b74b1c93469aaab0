"""Cross entropy at labelled positions only, without the logits of a whole batch in memory.

The backbone runs on every token. The head runs on the labelled positions, chunk by chunk, and each
chunk's gradient is computed in the forward pass while its logits are in memory. Rows are padded on
the right and no attention mask is passed: causal attention does not see later positions, so padding
changes nothing, and attention kernels are faster without a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from ftcli.errors import ModelError
from ftcli.kernels.attention import packed_attention
from ftcli.kernels.autocast import autocast_type
from ftcli.kernels.head import Gradients, Head, cross_entropy
from ftcli.memory.head_bytes import LOSS_CHUNK_POSITIONS, positions_of
from ftcli.models.batches import Batch, of_tensors
from ftcli.models.virtual_tokens import backbone_inputs, causal_model, virtual_tokens


@dataclass(frozen=True)
class LogitsForm:
    """How a causal model makes its logits, measured: `cap(scale · head(hidden_scale · hidden))`."""

    head: str
    """Name of the linear layer."""
    backbone: str | None
    """Name of the module that returns the hidden states; None: only the head's input has them."""
    hidden_scale: float
    scale: float
    softcap: float | None


_FORMS: WeakKeyDictionary[nn.Module, LogitsForm] = WeakKeyDictionary()
# Outputs given to the head's place. What follows is linear at SMALL; a softcap is flat at LARGE,
# which fp16 can hold.
SMALL, LARGE = 2.0**-10, 2.0**14


def head_of(model: PreTrainedModel) -> Head:
    """The head of a causal language model, with the scale and softcap that follow it."""
    form = logits_form(model)
    head: Any = model.get_submodule(form.head)
    return Head(head.weight, getattr(head, "bias", None), form.scale, form.softcap)


def logits_form(network: PreTrainedModel) -> LogitsForm:
    """How a causal model without its adapter makes its logits, measured once; raises ModelError."""
    if network not in _FORMS:
        training = [module for module in network.modules() if module.training]
        with torch.no_grad():
            try:
                _FORMS[network] = _measured_form(network.eval())
            finally:
                for module in training:
                    module.training = True
    return _FORMS[network]


def _measured_form(network: PreTrainedModel) -> LogitsForm:
    ids = _few_ids(network)
    calls: list[tuple[nn.Module, Any, Any]] = []
    handles = [
        module.register_forward_hook(lambda *call: calls.append(call))
        for module in network.modules()
    ]
    try:
        logits = network(input_ids=ids, use_cache=False).logits
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            "not_a_decoder",
            f"{type(network).__name__} does not run on text alone ({error}); ftcli gives it "
            "nothing else",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in network.named_modules()}
    made_by = [call for call in calls if _makes(logits, *call)]
    if not made_by:
        raise _unknown_head(network, "no linear layer makes them")
    head, (inputs, *_), _ = made_by[-1]
    scale, softcap = _after(network, head, ids, logits)
    form = LogitsForm(names[head], None, 1.0, scale, softcap)
    for module, _, output in reversed(calls):
        hidden = getattr(output, "last_hidden_state", None)
        if module is network or hidden is None or hidden.shape != inputs.shape:
            continue
        if torch.equal(hidden, inputs):
            return replace(form, backbone=names[module])
        if _is_close(inputs, hidden * ((inputs * hidden).sum() / (hidden**2).sum())):
            factor = _before(network, module, head, ids)
            return replace(form, backbone=names[module], hidden_scale=factor)
    return form


def _few_ids(network: PreTrainedModel) -> Tensor:
    return torch.arange(1, 5, device=network.get_input_embeddings().weight.device)[None]


def _makes(logits: Tensor, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> bool:
    """Whether a call may have been the head's: by the shapes of weight, input and output."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.dim() == 2
        and len(weight) == logits.shape[-1]
        and isinstance(output, Tensor)
        and output.shape == logits.shape
        and bool(inputs)
        and inputs[0].is_floating_point()
    )


@contextmanager
def _head_replaced(head: Any, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the head does something else."""
    own = vars(head).get("forward")
    head.forward = function
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def _after(
    network: PreTrainedModel, head: nn.Module, ids: Tensor, logits: Tensor
) -> tuple[float, float | None]:
    """Scale and softcap between the head's outputs and the logits, from chosen outputs."""
    between = torch.linspace(-1, 1, 61, device=ids.device).sinh() * 100
    some = torch.cat((between.new_tensor([SMALL, LARGE, -LARGE]), between))
    chosen = some[torch.arange(logits.numel(), device=ids.device) % len(some)].view(logits.shape)
    with _head_replaced(head, lambda _: chosen.clone()):
        found = network(input_ids=ids, use_cache=False).logits.float()
    scale = found.flatten()[0].item() / SMALL
    flat = found.flatten()[1].item()
    softcap = flat if abs(flat) < abs(scale) * LARGE / 2 else None
    expected = scale * chosen
    if softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    # In 16 bits, the chosen outputs are rounded.
    if not bool(((found - expected).abs() <= 0.02 * expected.abs()).all()):
        raise _unknown_head(network, "more than a scale and a softcap follow its head")
    return (1.0 if abs(scale - 1) < 1e-6 else scale), softcap


def _before(network: PreTrainedModel, backbone: nn.Module, head: nn.Module, ids: Tensor) -> float:
    """The factor between hidden states and the head's input, from hidden states of 1."""
    read: list[Tensor] = []

    def ones(_: nn.Module, __: Any, output: Any) -> Any:
        output.last_hidden_state = torch.ones_like(output.last_hidden_state, dtype=torch.float32)
        return output

    def capture(hidden: Tensor) -> Tensor:
        read.append(hidden)
        return hidden.new_zeros((*hidden.shape[:-1], 1))

    handle = backbone.register_forward_hook(ones)
    try:
        with _head_replaced(head, capture):
            network(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return read[-1].flatten()[0].item()


def _is_close(one: Tensor, other: Tensor, within: float = 0.02) -> bool:
    """Whether they differ by no more than the rounding of 16 bits; false for NaN."""
    difference = (one.float() - other.float()).abs().max()
    return bool(difference <= within * one.abs().max())


def _unknown_head(network: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(
        "model",
        f"{type(network).__name__} computes its logits in a way that ftcli does not know: "
        f"{reason}; its loss would be wrong, so it can be neither trained nor scored",
    )


def require_known_head(model: PreTrainedModel) -> None:
    """Raise ModelError if a model's logits are not those of `head_of`, or depend on later tokens.

    For a model in evaluation mode: dropout would make two passes differ.
    """
    ids = _few_ids(model)
    with torch.no_grad():
        form = logits_form(model)
        expected = model(input_ids=ids, use_cache=False).logits
        if not expected.isfinite().all():
            return  # broken weights, which every score of it shows
        _require_causal(model, ids)
        without = replace(form, backbone=None, hidden_scale=1.0)
        for _FORMS[model] in dict.fromkeys((form, without)):
            found = head_of(model).logits(_hidden(model, of_tensors(ids, ids)))
            if _is_close(expected, found):
                return
    raise _unknown_head(model, "they are not those of its head")


def _require_causal(network: PreTrainedModel, ids: Tensor) -> None:
    """Raise ModelError if the logits of the first half depend on the tokens of the second."""
    half = ids.shape[1] // 2
    other = torch.cat((ids[:, :half], ids[:, :-half]), dim=1)
    before, after = (
        network(input_ids=each, use_cache=False).logits[:, :half] for each in (ids, other)
    )
    # Experts get tokens in another order, which changes the rounding.
    is_exact = before.dtype == torch.float32 and autocast_type(before) is None
    if not _is_close(before, after, 1e-3 if is_exact else 0.02):
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
    form = logits_form(network)
    if batch.layout is None:
        inputs = backbone_inputs(model, batch.input_ids)
        hidden = _head_input(network, form, inputs)[:, -batch.input_ids.shape[1] :]
    else:
        assert not virtual_tokens(model)
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.positions}
        with packed_attention(model):
            hidden = _head_input(
                network, form, inputs | {"layout": batch.layout, "use_cache": False}
            )
    return hidden if form.hidden_scale == 1.0 else hidden * form.hidden_scale


def _head_input(network: PreTrainedModel, form: LogitsForm, inputs: dict[str, Any]) -> Tensor:
    """Output of the backbone, or of all that precedes the head where no module returns that."""
    if form.backbone is not None:
        hidden: Tensor = network.get_submodule(form.backbone)(**inputs).last_hidden_state
        return hidden
    read: list[Tensor] = []

    def capture(hidden: Tensor) -> Tensor:
        read.append(hidden)
        return hidden.new_zeros((*hidden.shape[:-1], 1))

    with _head_replaced(network.get_submodule(form.head), capture):
        network(**inputs)
    return read[-1]


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
