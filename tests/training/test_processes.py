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

recipe, run, found = (Path(word) for word in sys.argv[1:])
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


def train(recipe: Path, folder: Path, processes: int) -> list[Any]:
    """What each process found: losses, gradients of the first step, weights after the last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        arguments = [str(recipe), str(folder / f"run-{rank}"), str(folder / f"found-{rank}.pt")]
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        of_process = {name: str(value) for name, value in (world | places).items()}
        command = [sys.executable, "-c", PROGRAM, *arguments]
        started.append(
            subprocess.Popen(command, env={**os.environ, **(of_process if processes > 1 else {})})
        )
    assert [process.wait(timeout=300) for process in started] == [0] * processes
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(processes)]


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
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    ((losses, gradients, weights, kind),) = train(recipe, folders[0], 1)
    several = train(recipe, folders[1], 2)
    assert kind != "DistributedDataParallel"
    for of_losses, of_gradients, of_weights, wrapped in several:
        assert wrapped == "DistributedDataParallel"
        torch.testing.assert_close(of_losses, losses, rtol=1e-6, atol=0)
        largest = max(float(each.abs().max()) for each in gradients.values())
        for name, gradient in gradients.items():
            assert float((of_gradients[name] - gradient).abs().max()) <= 1e-6 * largest, name
            assert float((of_weights[name] - weights[name]).abs().max()) <= 1e-5, name
