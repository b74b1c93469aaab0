"""Measure one training: load, attach and train with ftcli's engine, three steps, and print bytes.

    python -m scripts.measure_point RECIPE

scripts/measure_vram.py starts it in its own process, so that a lack of memory ends one point only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ftcli.config.loader import RecipeFile, load_recipe
from ftcli.console import Terminal
from ftcli.data.tokenizing.tokenize import prepare
from ftcli.errors import MachineError
from ftcli.runs.folder import RunFolder
from ftcli.training.building import build_trainer
from ftcli.training.job import TrainJob, open_model
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from ftcli.training.preflight import MemoryMeter, StepMemory

# The plan would refuse a training that it estimates as too large; here the GPU decides.
NO_LIMIT_BYTES = 2**60


def measure_recipe(recipe: Path) -> dict[str, int | None]:
    """Peaks of the recipe's steps, and the bytes of the CUDA context."""
    idle_bytes = card_bytes()
    context_bytes = context_taken_bytes(idle_bytes)
    trained, memory = _train(load_recipe(recipe), RunFolder(recipe.parent / "run"))
    return {
        "allocated_bytes": memory.steps.allocated_bytes,
        "reserved_bytes": memory.steps.reserved_bytes,
        "resident_bytes": memory.steps.resident_bytes,
        "nvidia_smi_bytes": None if idle_bytes is None else _required(card_bytes()) - idle_bytes,
        "context_bytes": context_bytes,
        "trainable_parameters": trained,
        "retries": torch.cuda.memory_stats(0)["num_alloc_retries"] if context_bytes else 0,
    }


def _train(loaded: RecipeFile, run: RunFolder) -> tuple[int, StepMemory]:
    """The trainer of `ftcli train`, without the callbacks that save."""
    model = open_model(loaded.recipe)
    prepared = prepare(loaded.recipe, model.renderer, run.data, Terminal())
    hardware = replace(model.hardware, free_bytes=NO_LIMIT_BYTES)
    plan = make_plan(loaded.recipe, model.architecture, RowStatistics.of(prepared), hardware)
    memory = StepMemory(MemoryMeter(hardware))
    job = TrainJob(loaded.recipe, loaded.path, model, prepared, plan, run)
    trainer = build_trainer(job)
    trainer.add_callback(memory)
    trainer.train()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return trained, memory


def card_bytes() -> int | None:
    """Used memory as nvidia-smi shows it, of all processes; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", index]
    output = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=True)
    return int(output.stdout) * 2**20


def context_taken_bytes(idle_bytes: int | None) -> int | None:
    """nvidia-smi minus torch's reserve, after the first tensor."""
    if idle_bytes is None:
        return None
    first = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    taken = _required(card_bytes()) - idle_bytes - torch.cuda.memory_reserved(0)
    del first
    torch.cuda.empty_cache()
    return taken


def _required(found: int | None) -> int:
    if found is None:
        raise MachineError("card", "the card is gone")
    return found


if __name__ == "__main__":
    print(json.dumps(measure_recipe(Path(sys.argv[1]))))
