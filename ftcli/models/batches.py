"""Rows of token ids → one batch for the model: padded, or packed without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ftcli.data.tokenizing.prefix_tree import build_prefix_tree, rounded
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.kernels.cpu import TOKENS_ROUNDED
from ftcli.kernels.slots import Layout, layout_of
from ftcli.kernels.varlen import KeyLayout, key_layout

Row = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """Token ids, and the positions whose hidden states predict a label."""

    input_ids: Tensor
    """[rows, longest], padded on the right; or [1, tokens], packed."""
    sources: Tensor
    """[labels]: positions in the flattened ids; rows share the positions of a common prefix."""
    targets: Tensor
    """[labels]: the token that follows."""
    rows: Tensor
    """[labels]: row number of each label."""
    row_count: int
    positions: Tensor | None = None
    """[1, tokens], for packed rows: position of each token in its rows."""
    layout: Layout | KeyLayout | None = None
    """For packed rows, on a CPU and on a GPU."""

    @property
    def label_count(self) -> int:
        """Number of labels, excluding position 0."""
        return len(self.targets)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; the host does not wait for a batch in pinned memory."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in pinned memory, from which a GPU copies by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        changed: dict[str, Any] = {
            name: change(each) for name, each in values.items() if isinstance(each, Tensor)
        }
        if isinstance(self.layout, KeyLayout):
            changed["layout"] = self.layout.changed(change)
        return replace(self, **changed)


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


def packed(
    rows: Sequence[Row], *, share_prefix: bool, most: int | None = None, on_gpu: bool = False
) -> Batch:
    """Padding-free batch; common prefixes are stored once if `share_prefix`.

    The tokens are padded to a multiple of TOKENS_ROUNDED, but to no more than `most`.
    """
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    tree = build_prefix_tree([row["input_ids"] for row in rows], share=share_prefix)
    tree = rounded(tree, TOKENS_ROUNDED, most)
    flat, positions = torch.zeros((2, tree.tokens), dtype=torch.long)
    sources, targets, numbers = [], [], []
    for number, (row, spans) in enumerate(zip(rows, tree.rows, strict=True)):
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
        layout=key_layout(tree) if on_gpu else layout_of(tree),
    )


def length_batches(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Row numbers in batches of `rows`, longest rows first, so that the first needs most memory."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    for start in range(0, len(order), rows):
        yield order[start : start + rows]
