"""Measure what the GPU at hand reaches, for the time estimate (ftcli.memory.speed).

    python -m scripts.bench_card

Prints products, copies and launches as JSON, and writes them to ftcli/memory/speed.json, where they
take the place of its maker's figures and of the shares that published runs reached.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from ftcli.errors import FtcliError, MachineError
from ftcli.memory.hardware import gpu_name
from ftcli.memory.speed import Rates, measured, store
from ftcli.models.device import device_of, find_hardware
from scripts.machine import product_seconds

# Tokens of a micro-batch, and a product of the MLP of an 8B model.
PRODUCT = (4096, 4096, 14336)
COPIED_BYTES = 2**30
LAUNCHES = 2000
TIMES = 30


def measure(
    device: torch.device,
    product: tuple[int, int, int] = PRODUCT,
    copied: int = COPIED_BYTES,
    launches: int = LAUNCHES,
) -> Rates:
    """What this device reaches: medians."""
    kind = torch.bfloat16 if find_hardware("auto").fast_bf16 else torch.float16
    tokens, inputs, outputs = product
    seconds = product_seconds(tokens, inputs, outputs, kind, device, TIMES)
    one = torch.zeros(copied, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    host = torch.empty(copied, dtype=torch.uint8, pin_memory=device.type == "cuda")
    few = torch.zeros(8, device=device)

    def launch() -> None:
        for _ in range(launches):
            few.add_(1)

    return Rates(
        product_flops=2 * tokens * inputs * outputs / seconds,
        bytes=2 * copied / median_seconds(lambda: other.copy_(one), device),
        copied_bytes=copied / median_seconds(lambda: one.copy_(host, non_blocking=True), device),
        launch_seconds=median_seconds(launch, device) / launches,
    )


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Until the device has finished; without the first third."""
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[TIMES // 3 :])


def main() -> None:
    hardware = find_hardware("auto")
    name = gpu_name(hardware.name)
    if hardware.kind != "cuda" or name is None:
        raise MachineError("no_cuda", f"{hardware.name} is no GPU that ftcli knows the speed of")
    rates = {
        key: float(f"{each:.4g}") for key, each in asdict(measure(device_of(hardware))).items()
    }
    store("measured", measured() | {name: rates})
    print(json.dumps({name: rates}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except FtcliError as error:
        sys.exit(f"error[{error.code}]: {error}")
