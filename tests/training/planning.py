"""Recipes, rows and machines for tests of plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ftcli.config.recipe import Recipe
from ftcli.memory.hardware import CARD_KERNELS, Hardware, find_card
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.plan import Plan, RowStatistics

GB = 10**9
MODES = ("full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning")
SMALL, LARGE = find_architecture("smollm2-135m"), find_architecture("7b")
# 1,000 rows of 200 tokens, half of which is answers; the longest row has 512.
PROFILE = RowStatistics(
    rows=1000, tokens=200_000, longest_tokens=512, label_share=0.5, validation_tokens=20_000
)


def recipe(mode: str = "lora", /, **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "shop",
            "model": {"id": "7b"} | sections.pop("model", {}),
            "method": {"mode": mode} | sections.pop("method", {}),
            "data": {"train": "shop.jsonl"},
            **sections,
        }
    )


def cpu(gigabytes: float = 16, *, fast_bf16: bool = False) -> Hardware:
    size = int(gigabytes * GB)
    return Hardware("cpu", "a CPU", size, size, None, fast_bf16, cores=2)


def card(name: str = "4090") -> Hardware:
    """A card of which all is free but what the display and the context take."""
    found = find_card(name)
    capability = found.compute_capability
    assert capability is not None
    return Hardware(
        "cuda",
        found.name,
        found.memory_bytes,
        found.usable_bytes - found.context_bytes,
        capability,
        fast_bf16=capability >= (8, 0),
        cores=16,
        kernels=frozenset(CARD_KERNELS),
    )


def card_with(gigabytes: float) -> Hardware:
    return replace(card(), free_bytes=int(gigabytes * GB))


def decided(plan: Plan, wanted: str) -> tuple[Any, str]:
    """A value that was left open, and the reason for it."""
    return next((value, reason) for key, value, reason in plan.decisions() if key == wanted)
