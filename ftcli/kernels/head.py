"""Head product and cross entropy of a chunk of positions, a tile of the vocabulary at a time.

The softmax is the online one (Milakov and Gimelshein 2018), and the gradient that goes back to the
hidden states is added up beside it, as flash attention adds up its values: a tile of logits is made
once, stays in the caches, and is gone before the next. A head that is trained keeps the tiles'
exponentials until their sum is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ftcli.memory.head import HEAD_TILE_TOKENS


@dataclass(frozen=True)
class Head:
    """A model's last step from hidden states to logits."""

    weight: Tensor
    """[vocab, hidden]"""
    bias: Tensor | None
    """[vocab]"""
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] → fp32 logits [n, vocab]."""
        logits = product(hidden, self.weight.to(hidden.dtype).T).float()
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def tiles(self) -> Iterator[tuple[slice, Head]]:
        """Tokens of the vocabulary, and the part of the head that is theirs."""
        for start in range(0, len(self.weight), HEAD_TILE_TOKENS):
            part = slice(start, start + HEAD_TILE_TOKENS)
            bias = None if self.bias is None else self.bias[part]
            yield part, Head(self.weight[part], bias, self.scale, self.softcap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Of the softcap, at what it has made; None where there is none."""
        return None if self.softcap is None else 1 - (logits / self.softcap) ** 2


@dataclass(frozen=True)
class Gradients:
    """Where the gradients of a chunk's summed loss go; None: not wanted."""

    hidden: Tensor | None
    """[n, hidden], written over."""
    weight: Tensor | None
    """[vocab, hidden], added to."""
    bias: Tensor | None
    """[vocab], added to."""

    @property
    def of_head(self) -> bool:
        return self.weight is not None or self.bias is not None


def cross_entropy(
    head: Head, hidden: Tensor, targets: Tensor, gradients: Gradients | None = None
) -> Tensor:
    """Negative log-likelihood of each position, in fp32, and the gradients of its sum.

    Shapes: hidden [n, hidden], targets [m] → [m]; what is filled up behind m has no loss.
    """
    chunk = _Chunk(head, hidden, targets, gradients)
    for part, some in head.tiles():
        chunk.take(part, some)
    return chunk.finish()


@dataclass
class _Chunk:
    """What is known of the softmax of a chunk so far; numbers of positions are [n, 1]."""

    head: Head
    inputs: Tensor
    targets: Tensor
    gradients: Gradients | None
    largest: Tensor = field(init=False)
    """Logit."""
    others: Tensor = field(init=False)
    """Sum of the exponentials of logits less the largest, without the target's."""
    wanted: Tensor = field(init=False)
    """Logit of the target, of the first m positions."""
    summed: Tensor | None = field(init=False, default=None)
    """[n, hidden]: exponentials times the head's weight."""
    kept: list[tuple[slice, Tensor, Tensor]] = field(init=False, default_factory=list)
    """Of each tile its exponentials, and the logit that was the largest then."""

    def __post_init__(self) -> None:
        numbers = self.inputs.new_zeros((len(self.inputs), 1), dtype=torch.float32)
        self.largest, self.others = torch.full_like(numbers, -torch.inf), numbers
        self.wanted = numbers[: len(self.targets)].clone()
        if self.gradients is not None and self.gradients.hidden is not None:
            self.summed = torch.zeros_like(self.inputs, dtype=torch.float32)

    def take(self, part: slice, head: Head) -> None:
        """The next tile."""
        logits = head.logits(self.inputs)
        self._note_wanted(logits, part.start)
        slope = head.slope(logits) if self.gradients is not None else None
        largest = torch.maximum(self.largest, logits.amax(dim=1, keepdim=True))
        shrunk = torch.exp(self.largest - largest)
        shares = logits.sub_(largest).exp_()
        self._leave_out_target(shares, part.start)
        self.others.mul_(shrunk).add_(shares.sum(dim=1, keepdim=True))
        self.largest = largest
        if self.gradients is None:
            return
        if slope is not None:
            shares *= slope
            del slope  # or it would wait beside the product
        cast = shares.to(self.inputs.dtype)
        if self.summed is not None:
            self.summed.mul_(shrunk).add_(product(cast, head.weight.to(cast.dtype)))
        if self.gradients.of_head:
            self.kept.append((part, cast, largest))

    def _note_wanted(self, logits: Tensor, start: int) -> None:
        found, _, inside = self._of_targets(logits, start)
        self.wanted = torch.where(inside, found, self.wanted)

    def _leave_out_target(self, exponentials: Tensor, start: int) -> None:
        """`finish` adds it in fp32: where the model is sure it nearly cancels against the one hot,
        and 16 bits would have rounded it first."""
        found, places, inside = self._of_targets(exponentials, start)
        exponentials[: len(places)].scatter_(1, places, found.masked_fill(inside, 0))

    def _of_targets(self, tile: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """[m, 1]: what a tile holds of each target, its place there, and whether it is inside."""
        places = (self.targets - start)[:, None]
        inside = (places >= 0) & (places < tile.shape[1])
        places = places.clamp(0, tile.shape[1] - 1)
        return tile[: len(places)].gather(1, places), places, inside

    def finish(self) -> Tensor:
        """Losses [m], all gradients in place."""
        real = len(self.targets)
        total = self.others.clone()
        total[:real] += torch.exp(self.wanted - self.largest[:real])
        losses = (total.log() + self.largest)[:real] - self.wanted
        if self.gradients is not None:
            # d loss / d logits = softmax - one hot; behind the targets there is no loss
            factor = self.head.scale / total
            factor[real:] = 0
            slope = self.head.slope(self.wanted)
            of_target = (factor * self.others)[:real]  # one hot - softmax
            of_target = of_target if slope is None else of_target * slope
            self._to_hidden(factor, of_target)
            self._to_head(factor, of_target)
        return losses[:, 0]

    def _to_hidden(self, factor: Tensor, of_target: Tensor) -> None:
        if self.summed is None:
            return
        assert self.gradients is not None and self.gradients.hidden is not None
        found = self.summed.mul_(factor)
        found[: len(of_target)].addcmul_(self.head.weight[self.targets], of_target, value=-1)
        self.gradients.hidden.copy_(found)
        self.summed = None

    def _to_head(self, factor: Tensor, of_target: Tensor) -> None:
        assert self.gradients is not None
        weight, bias = self.gradients.weight, self.gradients.bias
        for part, shares, largest in self.kept:
            factors = factor * torch.exp(largest - self.largest)
            if weight is not None:
                weight[part] += product(shares.T, (self.inputs * factors).to(shares.dtype))
            if bias is not None:
                bias[part] += (factors.T @ shares.float())[0]
        targets, places = self.targets.unique(return_inverse=True)
        if weight is not None:
            wanted = self.inputs[: len(of_target)] * of_target
            weight[targets] -= _summed(wanted, places, len(targets)).to(weight.dtype)
        if bias is not None:
            bias[targets] -= _summed(of_target[:, 0], places, len(targets)).to(bias.dtype)


def product(one: Tensor, other: Tensor) -> Tensor:
    """[n, k] times [k, m], added up in fp32 and on a card left there; a CPU rounds 16 bits.

    torch 2.13 has no such product on a CPU, where one in fp32 takes three times as long.
    """
    if one.is_cuda and one.dtype != torch.float32:
        return torch.mm(one, other, out_dtype=torch.float32)
    return one @ other


def _summed(values: Tensor, places: Tensor, count: int) -> Tensor:
    """[m, …] → fp32 [count, …]: the values of each place, added up in their order on a CPU.

    `index_put_` adds in any order on two threads, and in 16 bits rounds each time.
    """
    summed = values.new_zeros((count, *values.shape[1:]), dtype=torch.float32)
    return summed.index_add_(0, places, values.float())
