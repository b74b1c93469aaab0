"""training.l2_sp: decoupled L2-SP, which pulls trained weights to their starting values.

L2-SP (Li, Grandvalet and Davoine 2018) adds strength / 2 · ‖w - start‖² to the loss. It is kept out
of the gradient here, like AdamW's weight decay (Loshchilov and Hutter 2019): Adam divides a
gradient by its size, so weights that move most would be pulled least. Loss, gradient norm and
clipping depend on the data alone. With SGD both are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ftcli.memory.trained import L2_SP_PIECE_ELEMENTS

STARTS = "start.safetensors"


class L2SP:
    """Starting weights of a model, and the pull towards them."""

    def __init__(self, model: nn.Module, strength: float, stored: torch.dtype | None) -> None:
        """`stored`: type of the files that the weights were loaded from; None: not from files.

        Starting weights are kept in this type, unless that would change a value.
        """
        self.strength = strength
        self.from_files = stored is not None
        self._starts = {name: _kept(weight, stored) for name, weight in _trained(model)}

    @property
    def bytes(self) -> int:
        """Memory of the starting weights."""
        return sum(start.numel() * start.element_size() for start in self._starts.values())

    def attach(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Pull before each optimizer step, by its learning rate at that step."""
        starts = {weight: self._starts[name] for name, weight in _trained(model)}
        optimizer.register_step_pre_hook(lambda stepping, *_: self._pull(stepping, starts))

    def save(self, folder: Path) -> None:
        """Save starting weights that are in no base's file: random ones, or another run's."""
        if not self.from_files:
            starts = {name: start.contiguous() for name, start in self._starts.items()}
            save_file(starts, folder / STARTS, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Load the starting weights of a checkpoint, if it has any."""
        file = folder / STARTS
        if file.is_file():
            for name, start in load_file(file).items():
                self._starts[name].copy_(start)

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, starts: Mapping[Tensor, Tensor]) -> None:
        # fp16: a fused optimizer is also called for a step it skips (torch/amp/grad_scaler.py)
        overflow: Any = getattr(optimizer, "found_inf", None)
        if overflow is not None and bool(overflow):
            return
        for group in optimizer.param_groups:
            fraction = float(group["lr"]) * self.strength
            for weight in group["params"]:
                for piece, start in _pieces(weight, starts[weight]):
                    piece.lerp_(start.to(piece.dtype), fraction)


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every trained weight once, also if two modules share it."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _kept(weight: Tensor, stored: torch.dtype | None) -> Tensor:
    start = weight.detach()
    if stored is not None and stored.itemsize < start.dtype.itemsize:
        narrow = start.to(stored)
        if torch.equal(narrow.to(start.dtype), start):
            return narrow
    return start.clone()


def _pieces(weight: Tensor, start: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in pieces if one has to be cast: a copy of all embeddings would raise the peak."""
    if weight.dtype == start.dtype:
        return iter([(weight, start)])
    rows = max(1, L2_SP_PIECE_ELEMENTS * len(weight) // weight.numel())
    return zip(weight.split(rows), start.split(rows), strict=True)
