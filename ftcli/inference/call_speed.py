"""Seconds of single calls of a model, for the cost that `ftcli train --dry-run` shows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from ftcli.inference.generation import Model

# The first token comes with the prompt; the others are timed.
TIMED_TOKENS = 17
LEAST_SECONDS = 1e-6


@dataclass(frozen=True)
class CallSpeed:
    """Seconds of single calls: medians over the prompts of a kind, and over all answers."""

    prompt_seconds: tuple[float, ...]
    """One for each kind of prompt."""
    seconds_per_answer_token: float


def time_calls(model: Model, kinds: Sequence[Sequence[Sequence[int]]]) -> CallSpeed:
    """Time prompts of several kinds in turn, so that other load on the machine affects all equally.

    Answer tokens are assumed to take the same time after each kind of prompt: the difference by
    context length is too small for such a short timing.
    """
    for prompts in kinds:
        _call_seconds(model, prompts[0], 1)  # kernels are chosen here
    firsts: list[list[float]] = [[] for _ in kinds]
    others: list[float] = []
    for turn in zip(*kinds, strict=True):
        for kind, prompt in enumerate(turn):
            first = _call_seconds(model, prompt, 1)
            whole = _call_seconds(model, prompt, TIMED_TOKENS)
            firsts[kind].append(first)
            others.append(max(whole - first, LEAST_SECONDS) / (TIMED_TOKENS - 1))
    return CallSpeed(tuple(map(statistics.median, firsts)), statistics.median(others))


def _call_seconds(model: Model, prompt: Sequence[int], tokens: int) -> float:
    """Seconds for a prompt and a greedy answer of exactly `tokens`."""
    ids = torch.tensor([list(prompt)], device=model.device)
    settings = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    started = time.monotonic()
    with torch.no_grad():
        model.network.eval().generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - started
