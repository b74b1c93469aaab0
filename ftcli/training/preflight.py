"""The longest batch of a run goes through all that can run out, before the first step counts."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from heapq import nlargest
from pathlib import Path

import torch

from ftcli.console import Reporter, gigabytes
from ftcli.kernels.attention import saved_probabilities
from ftcli.memory.activations import KEPT_KEYS, layers_bytes, rebuilt_layer_bytes
from ftcli.models.load import shape_of
from ftcli.runs.atomic import TEMPORARY, drop_folder, folder_bytes, require_space
from ftcli.training.laying import Padded
from ftcli.training.measured import StepMemory
from ftcli.training.plan.plan import Plan
from ftcli.training.randomness import random_state, restore_random_state
from ftcli.training.saving import optimizer_bytes, save_checkpoint
from ftcli.training.trainer import FtcliTrainer

WHERE = "the longest batch"
LAYER = re.compile(r"\.(\d+)\.")  # in the name of a weight
# At least so many, and an eighth of them: a model may mix kinds of layers.
LAST_LAYERS = 2
# Of the peak: gradients count as held from the start, a twentieth too much at most.
LITTLE = 1 / 20


def check_longest(
    trainer: FtcliTrainer, plan: Plan, memory: StepMemory, reporter: Reporter
) -> None:
    """Train on the largest micro-batch, validate and save, and undo all of it.

    Makes the micro-batch smaller where memory runs out. Raises torch's error where one row is too
    much, NotFiniteError, and MachineError (`disk_full`).
    """
    before = random_state()
    memory.watch()
    reserved = _room_for_states(trainer, plan)
    trainer.model.train()
    rows = trainer.micro_batch.do(
        lambda most: _train_on_largest(trainer, plan, most),
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
    longest = max(trainer.data.train.lengths[row] for row in rows)
    peak = memory.watched_bytes()
    size = f": peak {gigabytes(peak)}" if peak is not None else ""
    reporter.note(f"check  longest batch ({longest} tokens) {', '.join(did)} and saved{size}")


def _largest_rows(trainer: FtcliTrainer, plan: Plan, most: int) -> list[int]:
    """Those of the micro-batch of at most so many rows that takes most, the longest first: of the
    step that holds the longest row, or where tokens fill a micro-batch, of all the run's."""
    windows, lengths = trainer.data.windows, trainer.data.train.lengths
    if isinstance(trainer.laying, Padded):
        place = max(range(len(windows.order)), key=lambda i: lengths[windows.order[i]])
        return _first_rows(trainer, windows[place // windows.batch_size], most)
    used = set(windows.order)
    short = (row for row in used if lengths[row] <= KEPT_KEYS)
    fullest = (
        _first_rows(trainer, nlargest(windows.batch_size, rows, lengths.__getitem__), most)
        for rows in (used, short)
    )
    return max(filter(None, fullest), key=lambda rows: _layers_bytes(trainer, plan, rows))


def _first_rows(trainer: FtcliTrainer, rows: Sequence[int], most: int) -> list[int]:
    """As many of the first as a micro-batch of at most so many can have."""
    table = trainer.data.train.dataset
    return list(rows[: trainer.laying.first(table[list(rows)]["input_ids"], most)])


def _layers_bytes(trainer: FtcliTrainer, plan: Plan, rows: list[int]) -> int:
    """What the layers take for packed rows: of long rows fewer shares are kept than of short."""
    batch = trainer.laying.lay([trainer.data.train.dataset[row] for row in rows])
    assert batch.layout is not None
    tokens = batch.input_ids.numel()
    keys = round(saved_probabilities(batch.layout) / tokens)  # a token's, on average
    choices = replace(plan.estimated, micro_batch=1, seq_len=tokens, longest_row=keys)
    shape = shape_of(trainer.model)
    assert shape is not None, "it was planned for"
    return layers_bytes(shape, choices) + rebuilt_layer_bytes(shape, choices)


def _train_on_largest(trainer: FtcliTrainer, plan: Plan, most: int) -> list[int]:
    """On the largest micro-batch that a step can have of so many rows at once, beside the gradients
    of the one before it where a step has several; returns its rows."""
    rows = _largest_rows(trainer, plan, most)
    weights = {name: w for name, w in trainer.model.named_parameters() if w.requires_grad}
    last = _last_weights(trainer, plan, weights)
    windows = trainer.data.windows
    if len(rows) < min(windows.batch_size, len(windows.order)) or last is not None:
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
    trainer.gradients_of([rows], WHERE, of=last)
    return rows


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
    gradients = max(items["gradients"] for items in plan.estimate.timeline.values())
    if gradients > LITTLE * plan.estimate.peak_bytes:
        return None
    layers = {name: int(number[1]) for name in weights if (number := LAYER.search(name))}
    trained = sorted(set(layers.values()))
    if len(trained) <= LAST_LAYERS:
        return None
    first = trained[-max(LAST_LAYERS, len(trained) // 8)]
    return [weight for name, weight in weights.items() if layers.get(name, first) >= first]


def _room_for_states(trainer: FtcliTrainer, plan: Plan) -> torch.Tensor | None:
    """Hold what the optimizer will take at its first step, and every later one beside."""
    if optimizer_bytes(trainer.optimizer):
        return None
    size = plan.estimate.breakdown["optimizer"]
    # written to: else a CPU's system gives no memory for it yet
    return torch.ones(size, dtype=torch.uint8, device=trainer.args.device)


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
