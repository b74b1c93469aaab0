"""What torch's allocator reserves for the tensors, and the interval around both figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import MODE_NAMES, Choices
from ftcli.memory.step import Phase

Figure = Literal["allocated", "card"]
"""Allocated by tensors; or reserved by the allocator, or shown by nvidia-smi."""

RESIDUALS = Path(__file__).with_name("residuals.json")

# A kind with fewer runs than this uses the runs of all methods of its figure and stack.
FEWEST_RUNS = 8
# An interval is never narrower than this, however well a few runs agree.
_WIDEST_LOW = 0.95
_LEAST_HIGH = 1.12
_BEYOND_HIGHEST = 1.02
_LEFT_OUT_BELOW = 0.1


@dataclass(frozen=True)
class Residuals:
    """Measured / estimated over the runs of one kind: the estimate times `low` and `high` is the
    interval."""

    figure: Figure
    group: str
    like_ours: bool
    runs: int
    median_error: float
    low: float
    high: float

    @property
    def based_on(self) -> str:
        versions = "similar" if self.like_ours else "older"
        runs = f"{self.runs} measured runs of {self.group} with {versions} software versions"
        return f"{runs}, median error {self.median_error:.1%}"


def group_of(choices: Choices) -> str:
    """The group of methods that share an interval."""
    if choices.mode in ("prefix-tuning", "prompt-tuning"):
        return "prefix and prompt tuning"
    if choices.stack.trainable_parameters is not None:
        return "other adapters"
    return MODE_NAMES[choices.mode]


POOLED = "full fine-tuning, LoRA and QLoRA"


def residuals_of(choices: Choices, figure: Figure) -> Residuals:
    """The residuals for an estimate of these choices.

    A kind with few runs takes the wider bounds of its own and the pooled runs.
    """
    kinds = {(kind.figure, kind.group, kind.like_ours): kind for kind in _known_residuals()}
    like_ours = choices.stack.like_ours
    own = kinds.get((figure, group_of(choices), like_ours))
    pooled = kinds[figure, POOLED, like_ours]
    if own is None:
        return pooled
    if own.runs >= FEWEST_RUNS:
        return own
    return replace(pooled, low=min(own.low, pooled.low), high=max(own.high, pooled.high))


@cache
def _known_residuals() -> tuple[Residuals, ...]:
    return tuple(Residuals(**kind) for kind in json.loads(RESIDUALS.read_text())["kinds"])


def residuals(figure: Figure, group: str, like_ours: bool, ratios: Sequence[float]) -> Residuals:
    """From measured / estimated of each run.

    An estimate that says "fits" and runs out of memory is the worst failure: the upper bound lies
    above every run, the lower leaves out one in ten.
    """
    ordered = sorted(ratios)
    errors = sorted(abs(1 / ratio - 1) for ratio in ratios)
    middle = len(errors) // 2
    median = errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2
    low = ordered[int(_LEFT_OUT_BELOW * (len(ordered) - 1))]
    return Residuals(
        figure=figure,
        group=group,
        like_ours=like_ours,
        runs=len(ordered),
        median_error=round(median, 4),
        low=round(min(low, _WIDEST_LOW), 3),
        high=round(max(_BEYOND_HIGHEST * ordered[-1], _LEAST_HIGH), 3),
    )


def as_plain(kind: Residuals) -> dict[str, object]:
    return asdict(kind)


# The longest row of docs/data/measured_runs.csv.
LONGEST_MEASURED_TOKENS = 8192

# Model types of which docs/data/measured_runs.csv has a run.
_MEASURED_TYPES = {
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "olmo3"),
    *("apertus", "seed_oss", "falcon", "gpt_neox"),
}
# Chosen: kernels on a GPU may keep something else than torch's own operations, which are counted.
_WIDER_BY_KERNELS = 0.12
# Chosen: as much as the intervals of like runs reach to one side without their margin.
_WIDER_EACH = 0.05
_WIDEST = 0.2


def uncovered(architecture: Architecture, choices: Choices) -> tuple[str, ...]:
    """In words, for the line that says what an interval is based on."""
    return tuple(_widths(architecture, choices))


def widened_interval(
    residuals: Residuals, architecture: Architecture, choices: Choices
) -> Residuals:
    wider = min(_WIDEST, sum(_widths(architecture, choices).values()))
    return replace(residuals, low=residuals.low * (1 - wider), high=residuals.high * (1 + wider))


def _widths(architecture: Architecture, choices: Choices) -> dict[str, float]:
    """What is not covered → the share that it adds to either side."""
    long = choices.seq_len > LONGEST_MEASURED_TOKENS
    kinds = {
        "fp32 weights in full fine-tuning": choices.mode == "full" and choices.weight_bytes == 4,
        "stacked experts": architecture.has_experts and not choices.stack.linear_experts,
        f"rows of over {LONGEST_MEASURED_TOKENS} tokens": long,
        "DoRA": choices.has_lora and choices.dora,
        "packing": choices.packing,
        "bottleneck adapters": choices.mode == "bottleneck",
        "MLPs in tiles": choices.tiling,
        "embeddings in RAM": choices.embedding_offload,
    }
    widths = {kind: _WIDER_EACH for kind, holds in kinds.items() if holds}
    if architecture.recurrent:
        widths["layers with a state"] = _WIDER_BY_KERNELS
    elif architecture.attention == ("eager",) and architecture.model_type not in _MEASURED_TYPES:
        widths["eager attention of this type"] = _WIDER_BY_KERNELS
    elif architecture.model_type not in _MEASURED_TYPES:
        widths[f"model type {architecture.model_type}"] = _WIDER_EACH
    return widths


# What the caching allocator reserves beyond the tensors, as shares of them. Fitted on all published
# runs of stacks like ours that state reserved or nvidia-smi figures (docs/vram.md); none of them
# has a chunked loss.
_OF_ALL = 0.02
_OF_ACTIVATIONS = 0.15
# 16-bit logits and their fp32 copies do not fit into each other's blocks; where the head computes
# in fp32 all blocks are of one size and are used again.
_OF_16_BIT_LOGITS = 0.40
_OF_FP32_LOGITS = 0.10


def reserved_bytes(static_bytes: int, phase: Phase, choices: Choices) -> int:
    """Bytes that torch's caching allocator reserves in one phase of the step."""
    allocated = static_bytes + phase.total_bytes
    return round(
        (1 + _OF_ALL) * allocated
        + _OF_ACTIVATIONS * phase.activations
        + _logits_share(choices) * phase.logits
    )


def _logits_share(choices: Choices) -> float:
    if choices.loss == "chunked" or choices.stack.fused_loss_bytes_per_hidden is not None:
        return 0.0
    return _OF_FP32_LOGITS if choices.compute_bytes == 4 else _OF_16_BIT_LOGITS
