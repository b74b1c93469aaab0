"""The prepared rows as a training reads them, and the order in which it does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from ftcli.config.recipe import Recipe
from ftcli.data.order import Windows, run_rows
from ftcli.data.prepared import Prepared, RowsOf, row_lengths, split_file
from ftcli.training.plan.plan import Plan

# How many rows are named in an error.
NAMED = 8


@dataclass(frozen=True)
class Rows:
    """Memory-mapped rows of one split, and the length of each."""

    table: Dataset
    lengths: Sequence[int]

    @cached_property
    def dataset(self) -> Dataset:
        """Ids and labels alone."""
        return self.table.select_columns(["input_ids", "labels"])

    def longest_first(self) -> list[int]:
        """Row numbers, the longest row first: a lack of memory shows at once."""
        return sorted(range(len(self.lengths)), key=lambda row: self.lengths[row], reverse=True)

    def names(self, rows: Iterable[int]) -> str:
        """Where rows stand in the user's files: `shop.jsonl:12, shop.jsonl:55 and 3 more`."""
        wanted = list(dict.fromkeys(rows))
        found = [self.table[row] for row in wanted[:NAMED]]
        named = ", ".join(f"{row['file']}:{row['line']}" for row in found)
        more = len(wanted) - len(found)
        return f"{named} and {more} more" if more else named


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, step by step, and rows to validate on."""

    train: Rows
    windows: Windows
    validation: Rows | None
    pad_id: int

    def order_digest(self) -> str:
        """16 hex digits of the order of rows and of how many make a step."""
        return self._order_digest

    @cached_property
    def _order_digest(self) -> str:
        order = np.asarray(self.windows.order, dtype=np.int64).tobytes()
        return hashlib.sha256(b"%d:" % self.windows.batch_size + order).hexdigest()[:16]


def open_data(recipe: Recipe, plan: Plan, prepared: Prepared, folder: Path) -> TrainingData:
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
    windows = Windows(order, train.lengths, training.batch_size)
    validation = _rows(folder, ("validation",)) if prepared.validation.rows else None
    return TrainingData(train, windows, validation, prepared.pad_id)


def _rows(folder: Path, names: Sequence[RowsOf]) -> Rows:
    """The rows of these files, one behind the other."""
    tables = [Dataset.from_file(str(split_file(folder, name))) for name in names]
    lengths = [length for name in names for length in row_lengths(folder, name)]
    return Rows(tables[0] if len(tables) == 1 else concatenate_datasets(tables), lengths)
