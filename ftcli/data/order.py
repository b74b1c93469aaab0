"""Which rows form which optimizer step, and how a step is split into micro-batches.

The order of a whole run is one list, fixed before it starts. Steps cross the borders of epochs, so
every step but the last has exactly `batch_size` rows, and a resumed run only has to skip.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import overload


def run_rows(rows: int, epochs: float, seed: int, *, shuffle: bool, replayed: int = 0) -> list[int]:
    """Row numbers of the whole run, epoch after epoch, each epoch a fresh permutation.

    Without shuffling, the last `replayed` rows are spread evenly among the others.
    """
    order: list[int] = []
    for epoch in range(math.ceil(epochs)):
        one = list(range(rows)) if shuffle else _spread(rows, replayed)
        if shuffle:
            random.Random(f"{seed}-{epoch}").shuffle(one)
        order += one
    return order[: max(1, round(rows * epochs))]


def _spread(rows: int, replayed: int) -> list[int]:
    """All rows in order, the replayed ones at equal distances."""
    task = rows - replayed

    def place(row: int) -> float:
        return row if row < task else (row - task + 0.5) * task / replayed - 0.5

    return sorted(range(rows), key=place)


class StepSampler(Sequence[list[int]]):
    """Batch sampler of whole optimizer steps: `batch_size` rows each, in the last maybe fewer.

    The rows of a step are sorted by length, longest first, to save padding in its micro-batches.
    The set of rows does not change, so neither do the step's gradients.
    """

    def __init__(self, order: Sequence[int], lengths: Sequence[int], batch_size: int) -> None:
        self.order = order
        self.batch_size = batch_size
        self._lengths = lengths

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[step] for step in range(*index.indices(len(self)))]
        step = range(len(self))[index]
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        return sorted(rows, key=lambda row: self._lengths[row], reverse=True)

    def tokens(self, step: int) -> int:
        """Tokens without padding of step number `step`, from 0."""
        return sum(self._lengths[row] for row in self[step])

    def rows_done(self, steps: int) -> int:
        """Rows of the order in the first `steps` steps."""
        return min(steps * self.batch_size, len(self.order))

    def epochs_done(self, steps: int) -> float:
        """Epochs in the first `steps` steps."""
        return self.rows_done(steps) / len(self._lengths)


def micro_batches(window: Sequence[int], rows: int) -> list[list[int]]:
    """A step's rows in micro-batches of at most `rows`."""
    return [list(window[i : i + rows]) for i in range(0, len(window), rows)]
