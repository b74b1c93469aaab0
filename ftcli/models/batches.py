"""Rows of token ids → what goes through a model at once: padded rows, or rows without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ftcli.data.tokenizing.packing import plant, rounded
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.kernels.cpu import TOKENS_ROUNDED
from ftcli.kernels.slots import Layout, layout_of

Row = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """Token ids, and where the hidden states are that predict a labelled token."""

    input_ids: Tensor
    """[rows, longest], padded on the right; or [1, tokens], packed."""
    sources: Tensor
    """[labels]: places in the flattened ids. Several rows may share one."""
    targets: Tensor
    """[labels]: the token that follows there."""
    rows: Tensor
    """[labels]: number of the row that each label is of."""
    row_count: int
    positions: Tensor | None = None
    """[1, tokens] of packed rows: places of the tokens in their rows."""
    layout: Layout | None = None

    @property
    def labelled(self) -> int:
        """Labelled tokens; none is counted that nothing stands before."""
        return len(self.targets)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        positions, layout = self.positions, self.layout
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            sources=self.sources.to(device),
            targets=self.targets.to(device),
            rows=self.rows.to(device),
            positions=positions.to(device) if positions is not None else None,
            layout=layout.to(device) if layout is not None else None,
        )


def padded(rows: Sequence[Row], pad_id: int) -> Batch:
    """Rows padded on the right to the longest."""
    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), longest)
    ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    for index, row in enumerate(rows):
        ids[index, : len(row["input_ids"])] = torch.as_tensor(row["input_ids"])
        labels[index, : len(row["labels"])] = torch.as_tensor(row["labels"])
    return of_tensors(ids, labels)


def of_tensors(input_ids: Tensor, labels: Tensor) -> Batch:
    """A batch of padded rows; both [rows, tokens]."""
    targets = labels[:, 1:]
    row, place = (targets != IGNORED).nonzero(as_tuple=True)
    return Batch(
        input_ids=input_ids,
        sources=row * input_ids.shape[1] + place,
        targets=targets[row, place],
        rows=row,
        row_count=len(input_ids),
    )


def packed(rows: Sequence[Row], *, share: bool, most: int | None = None) -> Batch:
    """Rows one behind the other, without padding; what they begin with once, if they may share.

    Their tokens are filled up to a multiple of TOKENS_ROUNDED, but to no more than `most`.
    """
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    forest = plant([row["input_ids"] for row in rows], share=share)
    forest = rounded(forest, TOKENS_ROUNDED, most)
    flat, positions = torch.zeros((2, forest.tokens), dtype=torch.long)
    sources, targets, numbers = [], [], []
    for number, (row, spans) in enumerate(zip(rows, forest.rows, strict=True)):
        places = torch.cat([torch.arange(*span) for span in spans])
        flat[places], positions[places] = ids[number], torch.arange(len(places))
        labels = torch.as_tensor(row["labels"])[1:]
        wanted = labels != IGNORED
        sources.append(places[:-1][wanted])
        targets.append(labels[wanted])
        numbers.append(torch.full_like(targets[-1], number))
    return Batch(
        input_ids=flat[None],
        sources=torch.cat(sources),
        targets=torch.cat(targets),
        rows=torch.cat(numbers),
        row_count=len(rows),
        positions=positions[None],
        layout=layout_of(forest),
    )


def length_batches(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Row numbers in batches of `rows`, the longest rows first: a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    for start in range(0, len(order), rows):
        yield order[start : start + rows]
