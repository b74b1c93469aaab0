"""How much the predictions of two models differ on the same rows.

Both compute in a wider type than their weights have, so that the order of additions does not count.
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
from ftcli.models.device import input_device
from ftcli.models.text_forward import text_forward
from ftcli.models.virtual_tokens import causal_model

Rows = Sequence[Mapping[str, Sequence[int]]]

# Tokens in one batch: 1,024 × 152,000 logits in float64 are 1.2 GB.
BATCH_TOKENS = 1024
# Positions in one chunk of probabilities: 128 × 152,000 in float64 are 0.16 GB.
CHUNK_POSITIONS = 128


@dataclass(frozen=True)
class Prediction:
    """A model's logits at the labelled positions of one row."""

    logits: Tensor
    """[labels, vocab], fp32."""
    targets: Tensor
    """[labels], token ids."""


@dataclass(frozen=True)
class Parity:
    """The difference of a candidate from a reference at the labelled positions of some rows."""

    kl: float
    """Mean of KL(reference ‖ candidate), nats per token."""
    top1_agreement: float
    """Proportion of positions with the same most likely token."""
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
    groups: Sequence[WeightGroup] | None = None,
) -> Iterator[Prediction]:
    """Predictions row by row, computed in `dtype`; `groups` as in `compute_in`."""
    network = causal_model(network.eval())
    with torch.no_grad(), compute_in(network, dtype, groups):
        for batch_rows in _batches(rows):
            batch = padded(batch_rows, pad_id).to(input_device(network))
            logits = network(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)
            counts = batch.rows.bincount(minlength=len(batch_rows)).tolist()
            found = logits[batch.sources].float().cpu().split(counts)
            for each, targets in zip(found, batch.targets.cpu().split(counts), strict=True):
                yield Prediction(each, targets)


def _batches(rows: Rows) -> Iterator[Rows]:
    """Consecutive rows of at most BATCH_TOKENS tokens with padding; longer rows alone."""
    batch: list[Mapping[str, Sequence[int]]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row["input_ids"]))
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch, longest = [], len(row["input_ids"])
        batch.append(row)
    yield batch


@contextmanager
def compute_in(
    network: PreTrainedModel, dtype: torch.dtype, groups: Sequence[WeightGroup] | None = None
) -> Iterator[None]:
    """Compute in this type: a group's weights are upcast only during its own forward pass.

    4-bit weights are not upcast.
    """
    if groups is None:
        groups = [WeightGroup(module, dtype) for module in modules_with_weights(network)]
    handles = [
        handle
        for group in groups
        for handle in (
            group.module.register_forward_pre_hook(group.upcast),
            group.module.register_forward_hook(group.restore, always_call=True),
        )
    ]
    if attention_name(network) == "flash_attention_2":
        network.set_attn_implementation("sdpa")  # flash takes only 16 bits
    # PEFT's wrapper of bitsandbytes' layer has the same class name.
    four_bit = [
        each
        for each in network.modules()
        if type(each).__name__ == "Linear4bit" and not isinstance(each, BaseTunerLayer)
    ]
    for module in four_bit:
        module.forward = partial(_four_bit_forward, module, dtype)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in four_bit:
            del module.forward


def _four_bit_forward(layer: Any, dtype: torch.dtype, inputs: Tensor) -> Tensor:
    """Dequantise to the training's type, then upcast.

    bitsandbytes 0.50 dequantises to the inputs' type: in fp32 to other weights than in training.
    """
    from bitsandbytes.functional import dequantize_4bit  # looks for CUDA, slowly

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    return F.linear(inputs.to(dtype), weight, layer.bias)


@contextmanager
def largest_activation(network: nn.Module) -> Iterator[Callable[[], float]]:
    """A function that returns the largest magnitude of any layer's inputs and outputs so far."""
    largest = 0.0

    def record(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal largest
        for value in (*inputs, output):
            if isinstance(value, Tensor) and value.is_floating_point():
                largest = _max_or_nan(largest, value.abs().max().item())

    # Only leaves: other modules also get masks, with the largest numbers of their type.
    layers = [module for module in network.modules() if not any(module.children())]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield lambda: largest
    finally:
        for handle in handles:
            handle.remove()


class WeightGroup:
    """A module with weights, which `upcast` replaces and `restore` puts back."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module = module
        self.dtype = dtype
        self.stored: list[tuple[nn.Parameter, Tensor]] = []

    def upcast(self, *_: object) -> None:
        for parameter in self.module.parameters():
            if parameter.is_floating_point() and parameter.dtype != self.dtype:
                self.stored.append((parameter, parameter.data))
                parameter.data = parameter.data.to(self.dtype)

    def restore(self, *_: object) -> None:
        for parameter, data in self.stored:
            parameter.data = data
        self.stored.clear()


def modules_with_weights(network: PreTrainedModel) -> Iterator[nn.Module]:
    """The smallest modules that use only their own weights; an adapter uses its base's too."""
    readers = {network.get_submodule(name) for name in text_forward(network).readers}

    def smallest(module: nn.Module) -> Iterator[nn.Module]:
        together = isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)) or module in readers
        if together or any(True for _ in module.parameters(recurse=False)):
            yield module
            return
        for child in module.children():
            yield from smallest(child)

    return smallest(network)


def parity(reference: Sequence[Prediction], candidate: Sequence[Prediction]) -> Parity:
    """Compare a candidate with a reference."""
    kl, agreed, max_difference = 0.0, 0, 0.0
    losses: list[tuple[float, float, int]] = []
    for expected, found in zip(reference, candidate, strict=True):
        for p, q in zip(
            expected.logits.split(CHUNK_POSITIONS),
            found.logits.split(CHUNK_POSITIONS),
            strict=True,
        ):
            kl += _divergence(p.double(), q.double())
        agreed += int((expected.logits.argmax(-1) == found.logits.argmax(-1)).sum())
        difference = (expected.logits - found.logits).abs().max().item()
        max_difference = _max_or_nan(max_difference, difference)
        losses.append((_loss(expected), _loss(found), len(expected.targets)))
    before, after, tokens = zip(*losses, strict=True)
    return Parity(kl / sum(tokens), agreed / sum(tokens), max_difference, before, after, tokens)


def _loss(found: Prediction) -> float:
    return sum(
        F.cross_entropy(logits.double(), targets, reduction="sum").item()
        for logits, targets in zip(
            found.logits.split(CHUNK_POSITIONS),
            found.targets.split(CHUNK_POSITIONS),
            strict=True,
        )
    )


def _divergence(expected: Tensor, found: Tensor) -> float:
    """Summed KL(expected ‖ found) of logits [n, vocab]."""
    log_p, log_q = F.log_softmax(expected, dim=-1), F.log_softmax(found, dim=-1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    return 0.0 if divergence < 0 else divergence  # rounding error of equal logits


def _max_or_nan(one: float, other: float) -> float:
    """The maximum; NaN if `other` is NaN, which max() would drop."""
    return other if other > one or other != other else one
