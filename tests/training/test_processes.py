"""A step on several processes is the step of one: the loss is part of the model that DDP wraps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Recipes

# Of three rows a step at most, so that both processes have several micro-batches, and not as many.
PROGRAM = """
import os
import sys
from pathlib import Path

import torch

from ftcli.runs.folder import RunFolder
from ftcli.console import Terminal
from ftcli.training.building import build_trainer
from ftcli.data.tokenizing.tokenize import prepare
from ftcli.config.loader import load_recipe
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from ftcli.training.job import TrainJob, open_model

recipe, folder, port = (Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])


def in_children(*worlds: dict[str, str]) -> int | None:
    # A fork for each has what the imports made; in a child its rank, in the parent None.
    children = []
    for rank, world in enumerate(worlds):
        if not (child := os.fork()):
            os.environ.update(world, OMP_NUM_THREADS="1")
            return rank
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit("a child failed")
    return None


two = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
name, rank = "one", in_children({})
if rank is None:
    ranks = [two | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    name, rank = "two", in_children(*ranks)
if rank is None:
    sys.exit()
run, found = folder / f"{name}-{rank}", folder / f"{name}-{rank}.pt"
loaded = load_recipe(recipe)
model = open_model(loaded.recipe)
prepared = prepare(loaded.recipe, model.renderer, run / "data", Terminal())
plan = make_plan(loaded.recipe, model.architecture, RowStatistics.of(prepared), model.hardware)
job = TrainJob(loaded.recipe, recipe, model, prepared, plan, RunFolder(run))
trainer = build_trainer(job)
prepare_model = trainer.accelerator.prepare
trainer.model_wrapped, optimizer = prepare_model(trainer.model, trainer.create_optimizer())
weights = {name: w for name, w in trainer.model.named_parameters() if w.requires_grad}
losses, gradients = [], {}
for step in range(5):
    batch = trainer.collate_step(trainer.data.sampler[step])
    losses.append(trainer.training_step(trainer.model_wrapped, {"step": batch}))
    gradients = gradients or {name: w.grad.clone() for name, w in weights.items()}
    optimizer.step()
    trainer.zero_grad()
last = {name: w.detach() for name, w in weights.items()}
torch.save((torch.stack(losses), gradients, last, type(trainer.model_wrapped).__name__), found)
"""


def train(recipe: Path, folder: Path) -> dict[str, Any]:
    """What each process found: losses, gradients of the first step, weights after the last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(recipe), str(folder), str(port)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=True,
    )
    return {name: torch.load(folder / f"{name}.pt") for name in ("one-0", "two-0", "two-1")}


@pytest.mark.parametrize(
    ("mode", "packing"),
    [
        ("lora", True),
        pytest.param("full", False, marks=pytest.mark.slow),
        pytest.param("lora", False, marks=pytest.mark.slow),
        pytest.param("full", True, marks=pytest.mark.slow),
    ],
)
def test_two_processes_take_the_steps_of_one(
    mode: str, packing: bool, write_recipe: Recipes, tmp_path: Path
) -> None:
    training = {"epochs": 1, "batch_size": 6, "micro_batch_size": 2, "learning_rate": 1e-3}
    recipe = write_recipe(
        method={"mode": mode},
        training={**training, "packing": packing, "precision": "fp32"},
    )
    found = train(recipe, tmp_path)
    losses, gradients, weights, kind = found.pop("one-0")
    assert kind != "DistributedDataParallel"
    for of_losses, of_gradients, of_weights, wrapped in found.values():
        assert wrapped == "DistributedDataParallel"
        torch.testing.assert_close(of_losses, losses, rtol=1e-6, atol=0)
        largest = max(float(each.abs().max()) for each in gradients.values())
        for name, gradient in gradients.items():
            assert float((of_gradients[name] - gradient).abs().max()) <= 1e-6 * largest, name
            assert float((of_weights[name] - weights[name]).abs().max()) <= 1e-5, name
