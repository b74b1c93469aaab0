"""Machines with a GPU that this one has not: what is found, planned, refused and said."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftcli.cli import run
from ftcli.errors import MachineError
from ftcli.memory.architecture import PACKED_TYPES
from ftcli.memory.fit.search import needed_bytes
from ftcli.memory.hardware import GIB, LEFT_FREE_BYTES, Card, Hardware, find_card
from ftcli.models import device
from ftcli.models.device import find_hardware
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import Plan
from tests.conftest import Capture, Recipes
from tests.training.planning import LARGE, PROFILE, SMALL, cpu, decided, recipe

pytestmark = pytest.mark.card

# torch 2.13 for CUDA 13, by its release notes.
BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
QWEN = replace(PROFILE, longest_tokens=320)


def pretend(monkeypatch: pytest.MonkeyPatch, card: Card, gpus: int = 1, **also: Any) -> None:
    """torch sees this card, of which a desktop takes a part."""
    capability = card.compute_capability or (0, 0)
    properties = SimpleNamespace(
        name=card.model, major=capability[0], minor=capability[1], total_memory=card.memory_bytes
    )
    free = card.hardware.free_bytes + LEFT_FREE_BYTES
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: gpus,
        "get_device_properties": lambda _: properties,
        "get_arch_list": lambda: also.get("built", BUILT),
        "mem_get_info": lambda _: (free, card.memory_bytes),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.version, "hip", also.get("hip"))
    release = also.get("release", "6.8.0-40-generic")
    monkeypatch.setattr(platform, "release", lambda: release)


def plan_on(hardware: Hardware, mode: str = "qlora", model: Any = LARGE, **sections: Any) -> Plan:
    return make_plan(recipe(mode, **sections), model, QWEN, hardware)


@pytest.mark.parametrize("name", ["3060", "3090", "4090", "5090", "A100 80GB", "H100"])
def test_a_card_since_2020_computes_in_bf16_and_packs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = find_card(name)
    pretend(monkeypatch, card)
    hardware = find_hardware("auto")
    assert (hardware.kind, hardware.name, hardware.gpus) == ("cuda", card.model, 1)
    assert hardware.free_bytes == card.hardware.free_bytes and not (hardware.wsl or hardware.rocm)
    plan = plan_on(replace(hardware, kernels=card.hardware.kernels))
    assert plan.headline().startswith(f"{card.model} · bf16 · 16 rows per step, packed to ")
    assert plan.optimizations.shared_prefix and plan.optimizations.fused_lora
    assert plan.optimizations.liger and LARGE.model_type in PACKED_TYPES
    assert plan.estimate.high_bytes <= hardware.usable_bytes


def test_a_t4_computes_in_fp16_on_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, find_card("T4"))
    hardware = find_hardware("auto")
    plan = plan_on(hardware, model=SMALL)
    assert decided(plan, "training.precision") == (
        "fp16",
        "T4 has no bf16; fp16 with loss scaling",
    )
    assert not plan.training.packing and plan.optimizations.fused_lora
    for precision in ("bf16", "pure-bf16"):
        with pytest.raises(MachineError, match="needs a GPU of 2020 or later, and T4 would"):
            plan_on(hardware, model=SMALL, training={"precision": precision})


def test_a_card_older_than_the_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, find_card("V100"))
    with pytest.raises(MachineError) as caught:
        find_hardware("auto")
    assert caught.value.code == "no_cuda"
    assert "has no kernels for the V100 (compute capability 7.0)" in str(caught.value)
    pretend(monkeypatch, find_card("V100"), built=["sm_70", "sm_80"])
    assert find_hardware("auto").fast_bf16 is False
    assert find_hardware("cpu").kind == "cpu"


@pytest.mark.parametrize(
    ("built", "runs"),
    [
        (["sm_80"], True),  # the same major version, an earlier minor
        (["sm_90"], False),
        (["sm_90a"], False),
        (["compute_80"], True),  # compiled by the driver
        (["compute_90"], False),
        ([], True),  # unknown
    ],
)
def test_a_build_runs_on_its_architectures(
    built: list[str], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, find_card("4090"), built=built)
    if runs:
        assert find_hardware("auto").compute_capability == (8, 9)
    else:
        with pytest.raises(MachineError):
            find_hardware("auto")


def test_of_several_cards_the_plan_names_the_one_that_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, find_card("4090"), gpus=2)
    headline = plan_on(find_hardware("auto")).headline()
    assert headline.startswith("RTX 4090 (the first of 2 GPUs) · bf16")


def test_under_wsl_a_tenth_stays_free_and_nothing_is_paged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = find_card("4090")
    pretend(monkeypatch, card, release="5.15.153.1-microsoft-standard-WSL2")
    hardware = find_hardware("auto")
    free = card.hardware.free_bytes + LEFT_FREE_BYTES
    assert hardware.wsl and hardware.free_bytes == int(0.9 * free) - LEFT_FREE_BYTES
    on_linux = plan_on(card.hardware, "full", SMALL, training={"batch_size": 1})
    tight = needed_bytes(on_linux.estimate, card.hardware) - GIB // 4
    paged = replace(card.hardware, free_bytes=tight)
    optimizers = {
        each.wsl: plan_on(each, "full", SMALL, training={"batch_size": 1}).training.optimizer
        for each in (paged, replace(paged, wsl=True))
    }
    assert optimizers == {False: "paged-adamw-8bit", True: "adamw-8bit"}


def test_rocm_s_numbers_are_no_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(find_card("4090"), model="AMD Radeon RX 7900 XTX", compute_capability=(11, 0))
    pretend(monkeypatch, card, hip="6.4", built=["gfx1100"])
    hardware = find_hardware("auto")
    assert hardware.rocm and hardware.compute_capability is None and hardware.fast_bf16
    plan = plan_on(hardware)
    assert not plan.training.packing and "ROCm" in plan.reasons["training.packing"]


@pytest.mark.parametrize("system, machine", [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_without_a_gpu_the_cpu_is_named(
    system: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(device, "NVIDIA_GPUS", Path("/nowhere"))
    monkeypatch.setattr(device, "NVIDIA_DEVICES", Path("/nowhere"))
    monkeypatch.setattr(device, "_cpu_info", lambda _: "")
    hardware = find_hardware("auto")
    assert hardware.kind == "cpu"
    assert plan_on(cpu(), model=SMALL).headline().startswith("CPU (a CPU) · ")


def test_a_dry_run_on_a_card_says_how_long_it_takes(
    write_recipe: Recipes, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = replace(find_card("4090").hardware, name="NVIDIA GeForce RTX 4090", gpus=2)
    monkeypatch.setattr(device, "hardware_for", lambda _: hardware)
    recipe = str(write_recipe(method={"mode": "qlora", "rank": 4}))
    assert run(["train", recipe, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    low, high = found["time"]["seconds_interval"]
    assert low < found["time"]["seconds"] < high
    assert run(["train", recipe, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("plan for NVIDIA GeForce RTX 4090 (the first of 2 GPUs) (")
    assert "tokens per second (" in said and "without validations and saves" in said


@pytest.mark.parametrize(
    ("before", "release", "found"),
    [
        ({}, "6.8.0-40-generic", "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, "6.8.0", "backend:cudaMallocAsync"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "6.8.0", None),
        ({}, "5.15.167.4-microsoft-standard-WSL2", None),
    ],
)
def test_segments_of_the_allocator_grow(
    before: dict[str, str], release: str, found: str | None
) -> None:
    """Set before torch is imported, which reads it once; what the user set stays."""
    code = (
        f"import platform; platform.release = lambda: {release!r}\n"
        "import os, sys, ftcli.environment\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    )
    kept = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | before,
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == str(found)
