"""How far two models are apart on the same rows.

Both compute in a finer type than their weights have, so that what differs is their weights and not
the order in which two programs add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ftcli.compat import attention_name
from ftcli.models.batches import padded
from ftcli.models.virtual_tokens import causal_model

Rows = Sequence[Mapping[str, Sequence[int]]]

# Logits of so many tokens are held: 1,024 × 152,000 doubles are 1.2 GB.
TOKENS_AT_ONCE = 1024
# Positions whose probabilities are compared at once: 128 × 152,000 doubles are 0.16 GB.
POSITIONS_AT_ONCE = 128


@dataclass(frozen=True)
class Prediction:
    """What a model expects at the labelled positions of one row."""

    logits: Tensor
    """[labels, vocab], fp32."""
    targets: Tensor
    """[labels]: the tokens that follow."""


@dataclass(frozen=True)
class Parity:
    """How far a candidate is from a reference on the labelled positions of some rows."""

    kl: float
    """Mean of KL(reference ‖ candidate) in nats a token."""
    top1_agreement: float
    """Share of positions with the same first token."""
    max_logit_difference: float
    reference_losses: tuple[float, ...]
    """Negative log-likelihood of each row's targets, summed, in nats."""
    losses: tuple[float, ...]
    """The candidate's."""
    label_tokens: tuple[int, ...]
    """Of each row."""

    @property
    def tokens(self) -> int:
        return sum(self.label_tokens)


def predictions_of(
    network: PreTrainedModel,
    rows: Rows,
    pad_id: int,
    dtype: torch.dtype,
    parts: Sequence[Part] | None = None,
) -> Iterator[Prediction]:
    """Predictions for one row after the other, computed in `dtype`; `parts` as `computing_in`."""
    network = causal_model(network.eval())
    with torch.no_grad(), computing_in(network, dtype, parts):
        for some in _together(rows):
            batch = padded(some, pad_id).to(network.device)
            logits = network(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)
            counts = batch.rows.bincount(minlength=len(some)).tolist()
            found = logits[batch.sources].float().cpu().split(counts)
            for each, targets in zip(found, batch.targets.cpu().split(counts), strict=True):
                yield Prediction(each, targets)


def _together(rows: Rows) -> Iterator[Rows]:
    """Neighbours whose tokens, padded, come to TOKENS_AT_ONCE at most; each longer row alone."""
    some: list[Mapping[str, Sequence[int]]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row["input_ids"]))
        if some and longest * (len(some) + 1) > TOKENS_AT_ONCE:
            yield some
            some, longest = [], len(row["input_ids"])
        some.append(row)
    yield some


@contextmanager
def computing_in(
    network: PreTrainedModel, dtype: torch.dtype, parts: Sequence[Part] | None = None
) -> Iterator[None]:
    """Let each part of a model compute in this type, its weights widened only meanwhile.

    No more than one copy of the weights is held, in their own type; 4-bit weights stay as they
    are.
    """
    if parts is None:
        parts = [Part(module, dtype) for module in parts_of(network)]
    handles = [
        handle
        for part in parts
        for handle in (
            part.module.register_forward_pre_hook(part.widen),
            part.module.register_forward_hook(part.restore, always_call=True),
        )
    ]
    if attention_name(network) == "flash_attention_2":
        network.set_attn_implementation("sdpa")  # flash takes 16-bit tensors only
    # PEFT's wrapper of bitsandbytes' layer has the same class name.
    four_bit = [
        each
        for each in network.modules()
        if type(each).__name__ == "Linear4bit" and not isinstance(each, BaseTunerLayer)
    ]
    for module in four_bit:
        module.forward = partial(_as_trained, module, dtype)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in four_bit:
            del module.forward


def _as_trained(layer: Any, dtype: torch.dtype, inputs: Tensor) -> Tensor:
    """A 4-bit layer whose weights are rounded to the type that training computed in, then widened.

    bitsandbytes 0.50 dequantises to the type of the inputs: in fp32 to weights never trained with.
    """
    from bitsandbytes.functional import dequantize_4bit  # looks for CUDA, slowly

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    return F.linear(inputs.to(dtype), weight, layer.bias)


@contextmanager
def largest_activation(network: nn.Module) -> Iterator[Callable[[], float]]:
    """The largest magnitude that has gone into a layer or come out of one, whenever it is asked."""
    largest = 0.0

    def see(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal largest
        for value in (*inputs, output):
            if isinstance(value, Tensor) and value.is_floating_point():
                largest = _larger(largest, value.abs().max().item())

    # Modules with children are handed masks, too, whose numbers are as large as a type allows.
    layers = [module for module in network.modules() if not any(module.children())]
    handles = [layer.register_forward_hook(see) for layer in layers]
    try:
        yield lambda: largest
    finally:
        for handle in handles:
            handle.remove()


class Part:
    """A module that holds weights, and those weights as they are stored."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module = module
        self.dtype = dtype
        self.stored: list[tuple[nn.Parameter, Tensor]] = []

    def widen(self, *_: object) -> None:
        for parameter in self.module.parameters():
            if parameter.is_floating_point() and parameter.dtype != self.dtype:
                self.stored.append((parameter, parameter.data))
                parameter.data = parameter.data.to(self.dtype)

    def restore(self, *_: object) -> None:
        for parameter, data in self.stored:
            parameter.data = data
        self.stored.clear()


def parts_of(module: nn.Module) -> Iterator[nn.Module]:
    """The smallest modules that use their weights together: an adapter reads its base's."""
    together = isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
    if together or any(True for _ in module.parameters(recurse=False)):
        yield module
        return
    for child in module.children():
        yield from parts_of(child)


def parity(reference: Sequence[Prediction], candidate: Sequence[Prediction]) -> Parity:
    """How far a candidate is from a reference."""
    kl, agreed, furthest = 0.0, 0, 0.0
    losses: list[tuple[float, float, int]] = []
    for expected, found in zip(reference, candidate, strict=True):
        for p, q in zip(
            expected.logits.split(POSITIONS_AT_ONCE),
            found.logits.split(POSITIONS_AT_ONCE),
            strict=True,
        ):
            kl += _divergence(p.double(), q.double())
        agreed += int((expected.logits.argmax(-1) == found.logits.argmax(-1)).sum())
        furthest = _larger(furthest, (expected.logits - found.logits).abs().max().item())
        losses.append((_loss(expected), _loss(found), len(expected.targets)))
    before, after, tokens = zip(*losses, strict=True)
    return Parity(kl / sum(tokens), agreed / sum(tokens), furthest, before, after, tokens)


def _loss(found: Prediction) -> float:
    return sum(
        F.cross_entropy(logits.double(), targets, reduction="sum").item()
        for logits, targets in zip(
            found.logits.split(POSITIONS_AT_ONCE),
            found.targets.split(POSITIONS_AT_ONCE),
            strict=True,
        )
    )


def _divergence(expected: Tensor, found: Tensor) -> float:
    """Summed KL(expected ‖ found) of logits [n, vocab]."""
    log_p, log_q = F.log_softmax(expected, dim=-1), F.log_softmax(found, dim=-1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    return 0.0 if divergence < 0 else divergence  # equal logits round to just below


def _larger(one: float, other: float) -> float:
    """The larger of the two; not a number where the other is none, which max() would drop."""
    return other if other > one or other != other else one
