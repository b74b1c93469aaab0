"""How far two models are apart on the same rows.

Both compute in a finer type than their weights have, so that what differs is their weights and not
the order in which two programs add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ftcli.engine.batches import padded
from ftcli.engine.inference import Model
from ftcli.engine.virtual import causal_model

Rows = Sequence[Mapping[str, Sequence[int]]]

# Positions whose probabilities are compared at once: 128 × 152,000 doubles are 0.16 GB.
POSITIONS_AT_ONCE = 128


@dataclass(frozen=True)
class Parity:
    """How far two models are apart on the labelled positions of some rows."""

    kl: float
    """Mean of KL(reference ‖ candidate) in nats a token."""
    top1_agreement: float
    """Share of positions with the same first token."""
    max_logit_difference: float
    near_ties: int
    """Of the others, those at which the candidate prefers a token whose logit is, to the
    reference, less than one step of the candidate's type below its first: there any rounding
    decides."""
    tokens: int

    @property
    def agreement_with_ties(self) -> float:
        """Share of positions with the same first token, or with one as good."""
        return self.top1_agreement + self.near_ties / self.tokens


def logits_of(model: Model, rows: Rows, dtype: torch.dtype) -> Iterator[Tensor]:
    """fp32 logits [labelled tokens, vocab] of one row after the other, computed in `dtype`."""
    network = causal_model(model.network.eval())
    with torch.no_grad(), computing_in(network, dtype):
        for row in rows:
            batch = padded([row], model.contract.pad_id).to(model.device)
            output = network(input_ids=batch.input_ids, use_cache=False)
            yield output.logits[0][batch.sources].float().cpu()


@contextmanager
def computing_in(network: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Let each part of a model compute in this type, its weights widened only meanwhile.

    No more than one copy of the weights is held, in their own type. 4-bit weights stay as they
    are; bitsandbytes dequantises them to the type that it computes in.
    """
    parts = [_Part(module, dtype) for module in _parts(network)]
    handles = [
        handle
        for part in parts
        for handle in (
            part.module.register_forward_pre_hook(part.widen),
            part.module.register_forward_hook(part.restore, always_call=True),
        )
    ]
    if network.config._attn_implementation == "flash_attention_2":
        network.set_attn_implementation("sdpa")  # flash takes 16-bit tensors only
    for module in network.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype = dtype
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Part:
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


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The smallest modules that use their weights together: an adapter reads its base's."""
    together = isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
    if together or any(True for _ in module.parameters(recurse=False)):
        yield module
        return
    for child in module.children():
        yield from _parts(child)


def parity(
    reference: Sequence[Tensor],
    candidate: Iterator[Tensor],
    dtype: torch.dtype,
    moved: Callable[[int], None],
) -> Parity:
    """Compare logits row by row; `dtype` is the type of the candidate's weights."""
    kl, agreed, ties, furthest, tokens = 0.0, 0, 0, 0.0, 0
    for done, (expected, found) in enumerate(zip(reference, candidate, strict=True), start=1):
        for p, q in zip(
            expected.split(POSITIONS_AT_ONCE), found.split(POSITIONS_AT_ONCE), strict=True
        ):
            kl += _divergence(p.double(), q.double())
        same, near = _first_tokens(expected, found, dtype)
        agreed, ties = agreed + same, ties + near
        furthest = _larger(furthest, (expected - found).abs().max().item())
        tokens += len(expected)
        moved(done)
    return Parity(kl / tokens, agreed / tokens, furthest, ties, tokens)


def _first_tokens(expected: Tensor, found: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Positions with the same first token, and those where it is another by a near tie."""
    highest, first = expected.max(-1)
    other = found.argmax(-1)
    lost = highest - expected.gather(-1, other[:, None])[:, 0]
    step = torch.finfo(dtype).eps * torch.exp2(torch.frexp(highest).exponent - 1.0)
    same = first == other
    return int(same.sum()), int((~same & (lost < step)).sum())


def _divergence(expected: Tensor, found: Tensor) -> float:
    """Summed KL(expected ‖ found) of logits [n, vocab]."""
    log_p, log_q = F.log_softmax(expected, dim=-1), F.log_softmax(found, dim=-1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    return 0.0 if divergence < 0 else divergence  # equal logits round to just below


def _larger(one: float, other: float) -> float:
    """The larger of the two; not a number where the other is none, which max() would drop."""
    return other if other > one or other != other else one
