"""The longest batch of a run goes through all that can run out, before the first step counts."""

from __future__ import annotations

import re
import time
from heapq import nlargest
from pathlib import Path

import torch

from ftcli.console import Reporter, gigabytes
from ftcli.disk import TEMPORARY, drop_folder, folder_bytes, require_space
from ftcli.engine.checkpoints import optimizer_bytes, save_checkpoint
from ftcli.engine.laying import Packed
from ftcli.engine.memory import StepMemory
from ftcli.engine.randomness import random_state, restore_random_state
from ftcli.engine.trainer import FtcliTrainer
from ftcli.plan import Plan

WHERE = "the longest batch"
LAYER = re.compile(r"\.(\d+)\.")  # in the name of a weight
# At least so many, and an eighth of them: a model may mix kinds of layers.
LAST_LAYERS = 2
# Of the peak: gradients count as held from the start, a twentieth too much at most.
LITTLE = 1 / 20


def check_longest(
    trainer: FtcliTrainer, plan: Plan, memory: StepMemory, reporter: Reporter
) -> None:
    """Train on the longest micro-batch, validate and save, and undo all of it.

    Makes the micro-batch smaller where memory runs out. Raises torch's error where one row is too
    much, NotFiniteError, and MachineError (`disk_full`).
    """
    before = random_state()
    memory.watch()
    rows = _longest_rows(trainer)
    reserved = _room_for_states(trainer, plan)
    trainer.model.train()
    trainer.micro_batch.do(
        lambda most: _train_on_longest(trainer, plan, rows, most),
        trainer.forget_gradients,
        WHERE,
    )
    trainer.forget_gradients()
    did = ["trained"]
    if trainer.data.validation is not None:
        trainer.score(trainer.data.validation.longest_first())
        did.append("validated")
    del reserved
    _save_and_drop(trainer, plan)
    restore_random_state(before)
    longest = trainer.data.train.lengths[rows[0]]
    peak = memory.watched_bytes()
    size = f": peak {gigabytes(peak)}" if peak is not None else ""
    reporter.note(f"check  longest batch ({longest} tokens) {', '.join(did)} and saved{size}")


def _longest_rows(trainer: FtcliTrainer) -> list[int]:
    """Those of the step that holds the run's longest row, the longest first; where tokens fill a
    micro-batch, the longest of the run."""
    windows, lengths = trainer.data.windows, trainer.data.train.lengths
    if isinstance(trainer.laying, Packed):
        return nlargest(windows.batch_size, set(windows.order), key=lambda row: lengths[row])
    place = max(range(len(windows.order)), key=lambda i: lengths[windows.order[i]])
    return windows[place // windows.batch_size]


def _train_on_longest(trainer: FtcliTrainer, plan: Plan, rows: list[int], most: int) -> None:
    """The largest micro-batch that a step of so many rows at once can have, beside the gradients
    of the one before it where a step has several."""
    first = trainer.laying.first([trainer.data.train.lengths[row] for row in rows], most)
    weights = {name: w for name, w in trainer.model.named_parameters() if w.requires_grad}
    last = _last_weights(trainer, plan, weights)
    if first < len(rows) or last is not None:
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
    trainer.gradients_of([rows[:first]], WHERE, of=last)


def _last_weights(
    trainer: FtcliTrainer, plan: Plan, weights: dict[str, torch.Tensor]
) -> list[torch.Tensor] | None:
    """Those at which a backward pass may end that is made for its memory alone: once it is past
    them it gives back more than it takes, as all gradients are there. None where all are wanted.

    A card goes all the way: its products have workspaces and its allocator leaves gaps. So does a
    training whose gradients alone would count for much.
    """
    if trainer.args.device.type == "cuda":
        return None
    if plan.estimate.breakdown["gradients"] > LITTLE * plan.estimate.peak_bytes:
        return None
    layers = {name: int(number[1]) for name in weights if (number := LAYER.search(name))}
    trained = sorted(set(layers.values()))
    if len(trained) <= LAST_LAYERS:
        return None
    first = trained[-max(LAST_LAYERS, len(trained) // 8)]
    return [weight for name, weight in weights.items() if layers.get(name, first) >= first]


def _room_for_states(trainer: FtcliTrainer, plan: Plan) -> list[torch.Tensor]:
    """On a card, hold what the optimizer will take at its first step."""
    device = trainer.args.device
    if device.type != "cuda" or optimizer_bytes(trainer.optimizer):
        return []
    size = plan.estimate.breakdown["optimizer"]
    return [torch.empty(size, dtype=torch.uint8, device=device)]


def _save_and_drop(trainer: FtcliTrainer, plan: Plan) -> None:
    folder: Path = trainer.run.checkpoints / f"{TEMPORARY}check"
    started = time.monotonic()
    try:
        save_checkpoint(trainer, trainer.position(), folder)
        seconds = time.monotonic() - started
        written = size = folder_bytes(folder)
    finally:
        drop_folder(folder)
    if not optimizer_bytes(trainer.optimizer):
        size += plan.estimate.breakdown["optimizer"] + plan.estimate.managed_bytes
    trainer.checkpoint_bytes, trainer.checkpoint_seconds = size, seconds * size / written
    require_space(trainer.run.checkpoints, size, "a checkpoint")
