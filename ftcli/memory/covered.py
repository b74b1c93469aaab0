"""What of an estimate no published run or count covers, and how much that widens it."""

from __future__ import annotations

from dataclasses import replace

from ftcli.memory.choices import Choices
from ftcli.memory.interval import Residuals
from ftcli.memory.shapes import Shape

# The longest row of docs/data/measured_runs.csv.
LONGEST_MEASURED_TOKENS = 8192

# Model types whose layers tests/memory counts within 2%, or whose runs the table holds.
_COUNTED_TYPES = {
    *("llama", "mistral", "ministral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "phi3", "smollm3"),
    *("gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3", "granite", "arcee"),
    *("starcoder2", "seed_oss"),
}
# The others are read in their source. Counted: Phi 2 15 to 19% more than estimated, Cohere 6%,
# GLM 5%, GPT-NeoX 4 to 8% less.
_WIDER_BY_TYPE = 0.12
# Chosen: as much as the intervals of like runs reach to one side without their margin.
_WIDER_EACH = 0.05
_WIDEST = 0.2


def uncovered(shape: Shape, choices: Choices) -> tuple[str, ...]:
    """In words, for the line that says what an interval rests on."""
    return tuple(_widths(shape, choices))


def widened(residuals: Residuals, shape: Shape, choices: Choices) -> Residuals:
    wider = min(_WIDEST, sum(_widths(shape, choices).values()))
    return replace(residuals, low=residuals.low * (1 - wider), high=residuals.high * (1 + wider))


def _widths(shape: Shape, choices: Choices) -> dict[str, float]:
    """What is not covered → the share that it adds to either side."""
    long = choices.seq_len > LONGEST_MEASURED_TOKENS
    kinds = {
        "fp32 weights in full fine-tuning": choices.mode == "full" and choices.weight_bytes == 4,
        "stacked experts": shape.experts > 1 and not choices.stack.linear_experts,
        f"rows of over {LONGEST_MEASURED_TOKENS} tokens": long,
        "DoRA": choices.has_lora and choices.dora,
        "packing": choices.packing,
        "bottleneck adapters": choices.mode == "adapter",
    }
    widths = {kind: _WIDER_EACH for kind, holds in kinds.items() if holds}
    if shape.model_type not in _COUNTED_TYPES:
        widths[f"layers of type {shape.model_type}"] = _WIDER_BY_TYPE
    return widths
