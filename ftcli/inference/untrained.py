"""A recipe's base before any training: open it, prompt it, time its calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from ftcli.config.loader import Loaded
from ftcli.data.example import Message
from ftcli.data.few_shot import without_system
from ftcli.data.tokenizing.rendering import Renderer, RowFault
from ftcli.inference.generation import Model
from ftcli.kernels.cpu import tune_cpu
from ftcli.memory.shapes import find_shape, model_source
from ftcli.models.base_files import require_weights
from ftcli.models.device import device_of, hardware_for
from ftcli.models.load import compute_dtype, load_base
from ftcli.models.methods import quantization
from ftcli.models.prompt_manifest import PromptFormat
from ftcli.training.plan.decide import choose_attention, choose_precision

# The first token comes with the prompt; the others are timed.
TIMED_TOKENS = 17
LEAST_SECONDS = 1e-6


def load_untrained(loaded: Loaded, renderer: Renderer) -> Model:
    """The base as a training of this recipe would hold it; raises ModelError, MachineError."""
    recipe, model = loaded.recipe, loaded.recipe.model
    source = model_source(model.id, loaded.base)
    shape = find_shape(model.id, loaded.base, model.revision)
    hardware = hardware_for(loaded)
    tune_cpu(hardware)
    require_weights(source, model.revision, shape)
    dtype = compute_dtype(choose_precision(recipe, hardware)[0])
    network = load_base(
        source,
        model,
        dtype=dtype,
        attention=choose_attention(recipe, shape, hardware)[0],
        device=device_of(hardware),
        quantization=quantization(recipe.method, dtype),
    )
    return Model(network, PromptFormat(renderer, renderer.stop_ids, renderer.pad_id))


def ids_of(renderer: Renderer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a prompt; a system turn that the template refuses goes into the first user turn.

    Raises RowFault.
    """
    try:
        return renderer.prompt_ids(messages)
    except RowFault:
        if not messages or messages[0].role != "system":
            raise
    return renderer.prompt_ids(without_system(messages))


@dataclass(frozen=True)
class CallSpeed:
    """Seconds of calls one at a time: medians over the prompts of a kind, and over all answers."""

    prompt_seconds: tuple[float, ...]
    """One for each kind of prompt."""
    seconds_per_answer_token: float


def time_calls(model: Model, kinds: Sequence[Sequence[Sequence[int]]]) -> CallSpeed:
    """Time prompts of several kinds in turn, so that other load on the machine affects all alike.

    An answer token is taken to cost the same after each kind of prompt: what a longer context adds
    is less than such a short timing can show.
    """
    for prompts in kinds:
        _call_seconds(model, prompts[0], 1)  # untimed: kernels are chosen here
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
