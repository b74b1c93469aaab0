"""How many rows go through the model at once: as planned, and half as many when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from ftcli.models.device import is_out_of_memory
from ftcli.training.randomness import random_state, restore_random_state

T = TypeVar("T")


class MicroBatch:
    """The rows of one forward pass; `note` gets a sentence whenever there have to be fewer."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.note: Callable[[str], None] | None = None

    def do(self, work: Callable[[int], T], undo: Callable[[], None], what: str) -> T:
        """What `work` makes of so many rows at once.

        Where memory runs out on the way, `undo` throws away what was done, the random generators go
        back, and all of the work is done again with half the rows. Raises torch's error where one
        row is too much.
        """
        before = random_state()
        while True:
            try:
                return work(self.rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                one_row = self.rows == 1
                undo()
                restore_random_state(before)
                if one_row:
                    raise
            # Behind the handler, where the error no longer holds the frames with their tensors.
            self._halve(what)

    def _halve(self, what: str) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        earlier, self.rows = self.rows, self.rows // 2
        if self.note is not None:
            self.note(
                f"out of memory in {what}: micro-batch {earlier} → {self.rows} from here on, with "
                "as much more accumulation; rows and order of the steps stay"
            )
