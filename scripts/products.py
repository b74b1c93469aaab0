"""How long this machine takes for one matrix product."""

from __future__ import annotations

import statistics
import time

import torch


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
        found[0, 0].item()  # a card answers at once, and computes behind that
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[times // 6 :])
