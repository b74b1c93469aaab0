"""The machine of a measurement, and the speed of its matrix products: machines of one name can
differ by a factor of two."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch

from ftcli.kernels.cpu import tune_cpu
from ftcli.models.device import device_of, find_hardware

PRODUCT = (2048, 576, 1536)  # rows, width and inner width of SmolLM2-135M's gated MLP


def this_machine() -> dict[str, Any]:
    """Its name, and TFLOP/s of a small model's product in the dtype of its training."""
    hardware = find_hardware("auto")
    kind = torch.bfloat16 if hardware.fast_bf16 else torch.float32
    tune_cpu(hardware)
    seconds = product_seconds(*PRODUCT, kind, device_of(hardware), 60)
    return {
        "name": hardware.name,
        "cores": hardware.cores,
        "memory_bytes": hardware.memory_bytes,
        "fast_bf16": hardware.fast_bf16,
        "type": "bf16" if hardware.fast_bf16 else "fp32",
        "product_tflops": 2.0 * math.prod(PRODUCT) / seconds / 1e12,
    }


def product_seconds(
    tokens: int, inputs: int, outputs: int, kind: torch.dtype, device: torch.device, times: int
) -> float:
    """Of [tokens, inputs] × [inputs, outputs] in this type: the median, without the first sixth."""
    rows = torch.randn(tokens, inputs, dtype=kind, device=device)
    weight = torch.randn(outputs, inputs, dtype=kind, device=device)
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        found = rows @ weight.T
        found[0, 0].item()  # CUDA returns immediately and computes asynchronously
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[times // 6 :])
