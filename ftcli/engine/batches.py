"""Rows of token ids → padded tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ftcli.engine.rendering import IGNORED


def collate(rows: Sequence[Mapping[str, Sequence[int]]], pad_id: int) -> dict[str, Tensor]:
    """input_ids and labels, [rows, longest], padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), longest)
    batch = {"input_ids": torch.full(shape, pad_id), "labels": torch.full(shape, IGNORED)}
    for index, row in enumerate(rows):
        for name, tensor in batch.items():
            tensor[index, : len(row[name])] = torch.as_tensor(row[name])
    return batch


def length_batches(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Row numbers in batches of `rows`, the longest rows first: a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    for start in range(0, len(order), rows):
        yield order[start : start + rows]
