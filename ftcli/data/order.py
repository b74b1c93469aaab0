"""Which rows make which optimizer step, and how a step is cut into micro-batches.

The order of a whole run is one list, known before it starts: steps run across the borders of
epochs, so that every step but the last has exactly `batch_size` rows, and a resumed run only has
to skip.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def run_rows(rows: int, epochs: float, seed: int, *, shuffle: bool) -> list[int]:
    """Row numbers of the whole run, epoch after epoch, each epoch a fresh permutation."""
    order: list[int] = []
    for epoch in range(math.ceil(epochs)):
        one = list(range(rows))
        if shuffle:
            random.Random(f"{seed}-{epoch}").shuffle(one)
        order += one
    return order[: max(1, round(rows * epochs))]


def micro_batches(
    order: Sequence[int], lengths: Sequence[int], batch_size: int, micro_batch: int
) -> list[list[int]]:
    """Micro-batches of the whole run, `batch_size / micro_batch` of them a step.

    The rows of a step are sorted by length first: rows of one micro-batch are padded to its
    longest. Which rows make a step does not change, so neither do the step's gradients.
    """
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size):
        step = sorted(order[start : start + batch_size], key=lambda row: lengths[row], reverse=True)
        batches += [step[i : i + micro_batch] for i in range(0, len(step), micro_batch)]
    return batches
