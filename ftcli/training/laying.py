"""How the rows of a step are laid out: in which micro-batches, and with padding or without."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ftcli.data.order import micro_batches
from ftcli.data.tokenizing.packing import divide, plant, usually_shared
from ftcli.memory.fit.search import CPU_TOKENS
from ftcli.models.batches import Batch, Row, packed, padded
from ftcli.models.load import shape_of
from ftcli.models.virtual_tokens import virtual_tokens
from ftcli.training.plan.memory import PREFIXES
from ftcli.training.plan.optimizations import why_not_packed
from ftcli.training.plan.plan import Plan


@dataclass(frozen=True)
class Padded:
    """Rows that are padded to the longest of their micro-batch."""

    pad_id: int

    def divide(self, ids: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Places of the rows of a step, the longest first, in micro-batches of at most so many."""
        return micro_batches(range(len(ids)), most)

    def first(self, ids: Sequence[Sequence[int]], most: int) -> int:
        """How many of the rows, the longest first, the largest micro-batch has."""
        return min(most, len(ids))

    def lay(self, rows: Sequence[Row]) -> Batch:
        """A micro-batch."""
        return padded(rows, self.pad_id)


@dataclass(frozen=True)
class Packed:
    """Rows without padding, what they begin with once if they may share it."""

    tokens: int
    """Of a micro-batch of `rows` rows at most; where there have to be fewer, fewer too."""
    rows: int | None
    """None: as many as `tokens` has room for, whatever the caller's most."""
    share: bool
    common_tokens: int = 0
    """With which every row begins: of fewer rows they are no fewer."""

    def divide(self, ids: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Places of the rows of a step in as few micro-batches as tokens and rows allow."""
        return divide(ids, self._tokens(most), most if self.rows else len(ids), share=self.share)

    def first(self, ids: Sequence[Sequence[int]], most: int) -> int:
        """As of `Padded`: as many as its tokens have room for, what they share counted once."""
        room, rows = self._tokens(most), min(most, len(ids)) if self.rows else len(ids)

        def tokens(count: int) -> int:
            return plant(ids[:count], share=self.share).tokens

        return max(1, bisect_right(range(1, rows + 1), room, key=tokens))

    def lay(self, rows: Sequence[Row]) -> Batch:
        """A micro-batch."""
        return packed(rows, share_prefix=self.share, most=self.tokens)

    def _tokens(self, most: int) -> int:
        if not self.rows:
            return self.tokens
        common = self.common_tokens
        return common + (self.tokens - common) * most // self.rows


Laying = Padded | Packed


def laying_of(plan: Plan, pad_id: int) -> Laying:
    """As planned."""
    if not plan.training.packing:
        return Padded(pad_id)
    share = plan.optimizations.shared_prefix is True
    return Packed(plan.training.packing, plan.training.micro_batch_size, share, plan.common_tokens)


def laying_of_network(
    network: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int
) -> Laying:
    """For scoring, as a plan would have it: `rows` tell how much they have in common."""
    on_card = next(network.parameters()).device.type != "cpu"
    if on_card or virtual_tokens(network) or not _takes_packed_rows(network):
        return Padded(pad_id)
    return Packed(max(CPU_TOKENS, PREFIXES * usually_shared(rows)), None, share=True)


def _takes_packed_rows(network: PreTrainedModel) -> bool:
    shape = shape_of(network)
    return shape is not None and why_not_packed(replace(shape, dropout=False)) is None
