"""Head product and cross entropy of a chunk of positions, a tile of the vocabulary at a time.

Uses the online softmax (Milakov and Gimelshein 2018). The gradient of the hidden states is summed
with it, as flash attention sums its values: a tile of logits is computed once, stays in the caches,
and is freed before the next. A trained head keeps the tiles' exponentials until their sum is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ftcli.memory.activations.head_bytes import COPIED_TOKENS, HEAD_TILE_TOKENS


@dataclass(frozen=True)
class Head:
    """A model's head, from hidden states to logits."""

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

    def tiles(self, device: torch.device) -> Iterator[tuple[slice, Head]]:
        """Ranges of the vocabulary, each with its rows of the head; copied to a GPU if the head is
        in RAM."""
        there = self.weight.device == device
        tokens = HEAD_TILE_TOKENS[device.type] if there else COPIED_TOKENS
        for start in range(0, len(self.weight), tokens):
            part = slice(start, start + tokens)
            weight = self.weight[part].to(device, non_blocking=True)
            bias = None if self.bias is None else self.bias[part].to(device)
            yield part, Head(weight, bias, self.scale, self.softcap)

    def rows(self, tokens: Tensor) -> Tensor:
        """[m] → its weights for these tokens [m, hidden], on their device."""
        return self.weight[tokens.to(self.weight.device)].to(tokens.device)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Derivative of the softcap, from capped logits; None without a softcap."""
        return None if self.softcap is None else 1 - (logits / self.softcap) ** 2


@dataclass(frozen=True)
class Gradients:
    """Outputs for the gradients of a chunk's summed loss; None: not needed."""

    hidden: Tensor | None
    """[n, hidden], overwritten."""
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

    Shapes: hidden [n, hidden], targets [m] → [m]; positions after m are padding, without loss.
    """
    chunk = _Chunk(head, hidden, targets, gradients)
    for part, some in head.tiles(hidden.device):
        chunk.add_tile(part, some)
    return chunk.finish()


@dataclass
class _Chunk:
    """The online softmax of a chunk so far; numbers of positions are [n, 1]."""

    head: Head
    inputs: Tensor
    targets: Tensor
    gradients: Gradients | None
    largest: Tensor = field(init=False)
    """Largest logit."""
    others: Tensor = field(init=False)
    """Sum of exp(logit - largest), without the target's."""
    target_logits: Tensor = field(init=False)
    """Of the first m positions."""
    weighted: Tensor | None = field(init=False, default=None)
    """[n, hidden]: sum of the head's rows, weighted by the exponentials."""
    tiles: list[tuple[slice, Tensor, Tensor]] = field(init=False, default_factory=list)
    """Range and exponentials of each tile, and the largest logit up to it."""

    def __post_init__(self) -> None:
        zeros = self.inputs.new_zeros((len(self.inputs), 1), dtype=torch.float32)
        self.largest, self.others = torch.full_like(zeros, -torch.inf), zeros
        self.target_logits = zeros[: len(self.targets)].clone()
        if self.gradients is not None and self.gradients.hidden is not None:
            self.weighted = torch.zeros_like(self.inputs, dtype=torch.float32)

    def add_tile(self, part: slice, head: Head) -> None:
        logits = head.logits(self.inputs)
        found, _, inside = self._of_targets(logits, part.start)
        self.target_logits = torch.where(inside, found, self.target_logits)
        slope = head.slope(logits) if self.gradients is not None else None
        largest = torch.maximum(self.largest, logits.amax(dim=1, keepdim=True))
        rescale = torch.exp(self.largest - largest)
        exponentials = logits.sub_(largest).exp_()
        # `finish` adds the target's exponential in fp32: if the model is confident, it nearly
        # cancels against the one-hot, and 16 bits would have rounded it before.
        found, places, inside = self._of_targets(exponentials, part.start)
        exponentials[: len(places)].scatter_(1, places, found.masked_fill(inside, 0))
        self.others.mul_(rescale).add_(exponentials.sum(dim=1, keepdim=True))
        self.largest = largest
        if self.gradients is None:
            return
        if slope is not None:
            exponentials *= slope
            del slope  # before the product takes memory
        cast = exponentials.to(self.inputs.dtype)
        if self.weighted is not None:
            self.weighted.mul_(rescale).add_(product(cast, head.weight.to(cast.dtype)))
        if self.gradients.of_head:
            self.tiles.append((part, cast, largest))

    def _of_targets(self, tile: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """[m, 1]: a tile's value for each target, its column, and whether the tile has it."""
        places = (self.targets - start)[:, None]
        inside = (places >= 0) & (places < tile.shape[1])
        places = places.clamp(0, tile.shape[1] - 1)
        return tile[: len(places)].gather(1, places), places, inside

    def finish(self) -> Tensor:
        """Losses [m]; completes the gradients."""
        real = len(self.targets)
        total = self.others.clone()
        total[:real] += torch.exp(self.target_logits - self.largest[:real])
        losses = (total.log() + self.largest)[:real] - self.target_logits
        if self.gradients is not None:
            # d loss / d logits = softmax - one-hot; padding after the targets has no loss
            factor = self.head.scale / total
            factor[real:] = 0
            slope = self.head.slope(self.target_logits)
            of_target = (factor * self.others)[:real]  # one-hot - softmax
            of_target = of_target if slope is None else of_target * slope
            self._add_to_hidden(factor, of_target)
            self._add_to_head(factor, of_target)
        return losses[:, 0]

    def _add_to_hidden(self, factor: Tensor, of_target: Tensor) -> None:
        if self.weighted is None:
            return
        assert self.gradients is not None and self.gradients.hidden is not None
        found = self.weighted.mul_(factor)
        found[: len(of_target)].addcmul_(self.head.rows(self.targets), of_target, value=-1)
        self.gradients.hidden.copy_(found)
        self.weighted = None

    def _add_to_head(self, factor: Tensor, of_target: Tensor) -> None:
        assert self.gradients is not None
        if not self.gradients.of_head:
            return
        weight, bias = self.gradients.weight, self.gradients.bias
        for part, exponentials, largest in self.tiles:
            factors = factor * torch.exp(largest - self.largest)
            if weight is not None:
                scaled = (self.inputs * factors).to(exponentials.dtype)
                weight[part] += product(exponentials.T, scaled)
            if bias is not None:
                bias[part] += (factors.T @ exponentials.float())[0]
        real = len(of_target)
        if weight is not None:
            _subtract(weight, self.targets, self.inputs[:real] * of_target)
        if bias is not None:
            _subtract(bias, self.targets, of_target[:, 0])


def product(one: Tensor, other: Tensor) -> Tensor:
    """[n, k] times [k, m], accumulated in fp32; a CPU rounds the result to the inputs' type.

    torch 2.13 has no product with `out_dtype` on a CPU, and one in fp32 takes three times as long.
    """
    if one.is_cuda and one.dtype != torch.float32:
        return torch.mm(one, other, out_dtype=torch.float32)
    return one @ other


def _subtract(total: Tensor, places: Tensor, values: Tensor) -> None:
    """Subtract values [m, …] at places [m] from `total` [vocab, …]; on a CPU those of one place
    are summed in fp32 first.

    There `index_put_` adds in any order on two threads, and rounds each time. On a GPU it sorts
    the places itself, for which the host need not wait; `unique` would make it wait.
    """
    if total.is_cuda:
        total.index_put_((places,), -values.to(total.dtype), accumulate=True)
        return
    unique, found = places.unique(return_inverse=True)
    summed = values.new_zeros((len(unique), *values.shape[1:]), dtype=torch.float32)
    total[unique] -= summed.index_add_(0, found, values.float()).to(total.dtype)
