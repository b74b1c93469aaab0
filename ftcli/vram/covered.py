"""What of an estimate no published run or count covers, and how much that widens it."""

from __future__ import annotations

from dataclasses import replace

from ftcli.shapes import Shape
from ftcli.vram.choices import Choices
from ftcli.vram.interval import Residuals

# The longest row of docs/data/measured_runs.csv.
LONGEST_MEASURED_TOKENS = 8192
# Chosen: each uncovered kind adds as much as the median of like runs is wide on one side, twice at
# most.
_WIDER_EACH = 0.05
_MOST_KINDS = 2

# Model types whose layers tests/vram counts within 2%, or whose runs the table holds; others are
# read in their source: Phi 2 came out 15 to 19% low, Cohere 6%, GLM 5%, GPT-NeoX 4 to 8% high.
_COUNTED_TYPES = frozenset(
    "llama mistral mixtral qwen2 qwen3 qwen3_moe gemma gemma2 gemma3_text phi3 olmo olmo2 olmo3 "
    "granite arcee smollm3 starcoder2 ministral seed_oss".split()
)


def uncovered(shape: Shape, choices: Choices) -> tuple[str, ...]:
    """In words, for the line that says what an interval rests on."""
    kinds = {
        "fp32 weights in full fine-tuning": choices.mode == "full" and choices.weight_bytes == 4,
        "stacked experts": shape.experts > 1 and not choices.stack.linear_experts,
        f"rows of over {LONGEST_MEASURED_TOKENS} tokens": choices.seq_len > LONGEST_MEASURED_TOKENS,
        f"layers of type {shape.model_type}": shape.model_type not in _COUNTED_TYPES,
        "DoRA": choices.dora,
        "packing": choices.packing,
        "bottleneck adapters": choices.mode == "adapter",
    }
    return tuple(kind for kind, holds in kinds.items() if holds)


def widened(residuals: Residuals, shape: Shape, choices: Choices) -> Residuals:
    wider = _WIDER_EACH * min(_MOST_KINDS, len(uncovered(shape, choices)))
    return replace(residuals, low=residuals.low * (1 - wider), high=residuals.high * (1 + wider))
