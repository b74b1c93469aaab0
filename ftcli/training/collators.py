"""Read the rows of an optimizer step, split them into micro-batches, and pad or pack them.

If memory runs out, the same rows go through the model in smaller micro-batches."""

from __future__ import annotations

import gc
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from ftcli.config.recipe import Recipe
from ftcli.data.dataset import Dataset, RowsOf, row_lengths, split_file
from ftcli.data.order import StepSampler, micro_batches, run_rows
from ftcli.data.tokenizing.prefix_tree import (
    build_prefix_tree,
    split_by_tokens,
    typical_common_prefix,
)
from ftcli.memory.fit.search import CPU_TOKENS
from ftcli.models.architectures.find import architecture_of_model
from ftcli.models.batches import Batch, Row, packed, padded
from ftcli.models.device import input_device, is_out_of_memory
from ftcli.models.virtual_tokens import causal_model, virtual_tokens
from ftcli.training.checkpoint import random_state, restore_random_state
from ftcli.training.plan.memory import PREFIXES
from ftcli.training.plan.optimizations import why_not_packed
from ftcli.training.plan.plan import Plan

# Rows named in an error.
NAMED_ROWS = 8


@dataclass(frozen=True)
class Rows:
    """Memory-mapped rows of one split, and the length of each."""

    table: datasets.Dataset
    lengths: Sequence[int]

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """Ids and labels alone."""
        return self.table.select_columns(["input_ids", "labels"])

    def read(self, numbers: Sequence[int]) -> list[Example]:
        """These rows, in this order."""
        found = self.dataset[list(numbers)]
        columns = zip(numbers, found["input_ids"], found["labels"], strict=True)
        return [{"row": row, "input_ids": ids, "labels": labels} for row, ids, labels in columns]

    def longest_first(self) -> list[int]:
        """Row numbers, the longest row first, so that a lack of memory shows immediately."""
        return sorted(range(len(self.lengths)), key=lambda row: self.lengths[row], reverse=True)

    def names(self, rows: Iterable[int]) -> str:
        """Places of rows in the user's files: `shop.jsonl:12, shop.jsonl:55 and 3 more`."""
        numbers = list(dict.fromkeys(rows))
        found = [self.table[row] for row in numbers[:NAMED_ROWS]]
        named = ", ".join(f"{row['file']}:{row['line']}" for row in found)
        more = len(numbers) - len(found)
        return f"{named} and {more} more" if more else named


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, step by step, and rows to validate on."""

    train: Rows
    sampler: StepSampler
    validation: Rows | None
    pad_id: int

    @cached_property
    def order_digest(self) -> str:
        """16 hex digits of the order of rows and of the batch size."""
        order = np.asarray(self.sampler.order, dtype=np.int64).tobytes()
        return hashlib.sha256(b"%d:" % self.sampler.batch_size + order).hexdigest()[:16]


def open_data(recipe: Recipe, plan: Plan, prepared: Dataset, folder: Path) -> TrainingData:
    """The rows of a data folder in the order of a run."""
    train = _rows(folder, ("train", "replay") if prepared.replay is not None else ("train",))
    training = recipe.training
    order = run_rows(
        len(train.lengths),
        plan.epochs,
        training.seed,
        shuffle=recipe.data.shuffle,
        replayed=prepared.replay.rows if prepared.replay is not None else 0,
    )
    sampler = StepSampler(order, train.lengths, training.batch_size)
    validation = _rows(folder, ("validation",)) if prepared.validation.rows else None
    return TrainingData(train, sampler, validation, prepared.pad_id)


def _rows(folder: Path, names: Sequence[RowsOf]) -> Rows:
    """The rows of these files, in this order."""
    tables = [datasets.Dataset.from_file(str(split_file(folder, name))) for name in names]
    lengths = [length for name in names for length in row_lengths(folder, name)]
    return Rows(tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables), lengths)


Example = Mapping[str, Any]
"""`input_ids` and `labels` of a row, and its number as `row`."""


@dataclass(frozen=True)
class PaddingCollator:
    """Pads rows to the longest of their micro-batch."""

    pad_id: int

    def split(self, ids: Sequence[Sequence[int]], max_rows: int) -> list[list[int]]:
        """Indices of a step's rows in micro-batches of at most `max_rows` rows."""
        return micro_batches(range(len(ids)), max_rows)

    def rows_of_largest(self, ids: Sequence[Sequence[int]], max_rows: int) -> int:
        """How many of the rows, the longest first, the largest micro-batch has."""
        return min(max_rows, len(ids))

    def __call__(self, rows: Sequence[Row]) -> Batch:
        return padded(rows, self.pad_id)


@dataclass(frozen=True)
class PackingCollator:
    """Packs rows without padding; a common prefix is stored once if `share_prefix`."""

    tokens: int
    """Most tokens of a micro-batch with `rows` rows; fewer rows have proportionally fewer."""
    rows: int | None
    """None: `tokens` alone limits a micro-batch, and `max_rows` is ignored."""
    share_prefix: bool
    common_tokens: int = 0
    """Tokens with which every row begins; they do not become fewer with fewer rows."""
    on_gpu: bool = False

    def split(self, ids: Sequence[Sequence[int]], max_rows: int) -> list[list[int]]:
        """Indices of a step's rows in as few micro-batches as tokens and rows allow."""
        rows = max_rows if self.rows else len(ids)
        return split_by_tokens(ids, self._max_tokens(max_rows), rows, share=self.share_prefix)

    def rows_of_largest(self, ids: Sequence[Sequence[int]], max_rows: int) -> int:
        """How many of the rows, the longest first, the largest micro-batch has."""
        rows = min(max_rows, len(ids)) if self.rows else len(ids)

        def tokens(count: int) -> int:
            return build_prefix_tree(ids[:count], share=self.share_prefix).tokens

        return max(1, bisect_right(range(1, rows + 1), self._max_tokens(max_rows), key=tokens))

    def __call__(self, rows: Sequence[Row]) -> Batch:
        return packed(rows, share_prefix=self.share_prefix, most=self.tokens, on_gpu=self.on_gpu)

    def _max_tokens(self, max_rows: int) -> int:
        if not self.rows:
            return self.tokens
        common = self.common_tokens
        return common + (self.tokens - common) * max_rows // self.rows


Collator = PaddingCollator | PackingCollator


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together."""

    rows: list[int]
    """Row numbers in the split."""
    inputs: Batch


def split_micro_batches(
    examples: Sequence[Example], max_rows: int, collator: Collator
) -> list[MicroBatch]:
    """Micro-batches of at most `max_rows` rows, collated."""
    found = []
    for indices in collator.split([example["input_ids"] for example in examples], max_rows):
        rows = [examples[index] for index in indices]
        found.append(MicroBatch([row["row"] for row in rows], collator(rows)))
    return found


def training_collator(plan: Plan, pad_id: int) -> Collator:
    """The planned collator."""
    training, share = plan.training, plan.optimizations.shared_prefix is True
    if not training.packing:
        return PaddingCollator(pad_id)
    on_gpu = plan.hardware.kind == "cuda"
    return PackingCollator(
        training.packing, training.micro_batch_size, share, plan.common_tokens, on_gpu
    )


def scoring_collator(
    network: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int
) -> Collator:
    """The collator that a plan would choose; `rows` of token ids show their common prefix."""
    if input_device(network).type != "cpu" or virtual_tokens(network):
        return PaddingCollator(pad_id)
    architecture = architecture_of_model(causal_model(network))
    if why_not_packed(replace(architecture, dropout=False)) is not None:
        return PaddingCollator(pad_id)
    tokens = max(CPU_TOKENS, PREFIXES * typical_common_prefix(rows))
    return PackingCollator(tokens, None, share_prefix=True)


T = TypeVar("T")


class OomRetry:
    """Rows of a micro-batch: halved, for all later ones too, when memory runs out."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.note: Callable[[str], None] | None = None
        """Called with a sentence each time."""

    def run(self, attempt: Callable[[int], T], reset: Callable[[], None], what: str) -> T:
        """The result of `attempt(rows)`.

        If memory runs out, `reset` undoes the attempt, random states are restored, and the whole
        attempt is repeated with half the rows. Raises torch's error if one row is too much.
        """
        before = random_state()
        while True:
            try:
                return attempt(self.rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                one_row = self.rows == 1
                reset()
                restore_random_state(before)
                if one_row:
                    raise
            # After the handler: the error no longer references the frames with their tensors.
            self.halve(what)

    def halve(self, what: str) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        earlier, self.rows = self.rows, self.rows // 2
        if self.note is not None:
            self.note(
                f"out of memory in {what}: micro-batch {earlier} → {self.rows} from here on, with "
                "more accumulation; rows and order of the steps stay the same"
            )
