"""Score rows and answer prompts with a model in memory.

Answers come from transformers' `generate`. This module groups prompts into batches, prefills the
common prefix of a batch once, and removes finished rows from a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ftcli.config.recipe import Generation
from ftcli.data.tokenizing.prefix_tree import SHARED_TOKENS, common_tokens
from ftcli.inference.caches import cache_of, cache_tokens_of, padded
from ftcli.inference.streaming import AnswerStreamer
from ftcli.memory.step import ANSWERED_ROWS, PREFILLED_TOKENS
from ftcli.models.batches import Row, length_batches
from ftcli.models.device import input_device, is_out_of_memory
from ftcli.models.loss import row_losses
from ftcli.models.prompt_manifest import PromptFormat
from ftcli.models.virtual_tokens import (
    causal_model,
    generating,
    generation_inputs,
    virtual_tokens,
)
from ftcli.training.collators import Collator, PaddingCollator, scoring_collator

# Scoring is bound by compute with few rows; decoding by memory, so that more rows cost little.
SCORED_ROWS = 4
# Rows of similar length, within which rows with a common prefix are grouped.
BLOCK_ROWS = 64
# `generate` is called again without the finished rows once this share of a batch has finished.
FINISHED_SHARE = 0.25
_MOST_ROWS: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()
"""Rows of a batch that memory once had room for, by model, where it ran out."""


@dataclass(frozen=True)
class Model:
    """A model in memory, with its tokenizer, chat template and stop tokens."""

    network: PreTrainedModel
    prompt_format: PromptFormat
    optimized: bool = True
    """Whether the optimisations of docs/performance.md are on (training.optimizations)."""

    @property
    def device(self) -> torch.device:
        return input_device(self.network)


@dataclass(frozen=True)
class Answer:
    """A generated text; `stopped` if it finished (EOS) within the token limit."""

    text: str
    tokens: int
    stopped: bool


def context_tokens(model: Model) -> int | None:
    """The context length in the model's configuration."""
    found = getattr(model.network.config, "max_position_embeddings", None)
    return int(found) if found else None


def seed_sampling(seed: int) -> None:
    torch.manual_seed(seed)


# Scores


def scoring_batches(model: Model, rows: Sequence[Row]) -> Iterator[list[int]]:
    """Indices of rows in batches for `score_batch`: every row once, the longest rows first."""
    collator = _collator(model, rows)
    for block in length_batches([len(row["input_ids"]) for row in rows], BLOCK_ROWS):
        for part in collator.split([rows[index]["input_ids"] for index in block], SCORED_ROWS):
            yield [block[index] for index in part]


def score_batch(model: Model, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """Each row's summed negative log-likelihood (nats) and its number of labels."""
    batch = _collator(model, ())(rows).to(model.device)
    losses, labels = row_losses(model.network.eval(), batch)
    return list(zip(losses.tolist(), labels.tolist(), strict=True))


def _collator(model: Model, rows: Sequence[Row]) -> Collator:
    """The collator; the common prefix of the first `rows` sets the size of a batch."""
    if not model.optimized:
        return PaddingCollator(model.prompt_format.pad_id)
    return scoring_collator(
        model.network, [row["input_ids"] for row in rows[:BLOCK_ROWS]], model.prompt_format.pad_id
    )


# Answers


def answer_prompts(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Answers to tokenised prompts, in the prompts' order."""
    answers: dict[int, Answer] = {}
    for batch in answer_batches(model, prompts, settings):
        found = answer_batch(model, [prompts[index] for index in batch], settings)
        answers |= dict(zip(batch, found, strict=True))
        on_progress(len(answers))
    return [answers[index] for index in range(len(prompts))]


def answer_batches(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    batch_size: int = ANSWERED_ROWS,
) -> list[list[int]]:
    """Indices of prompts in batches for `answer_batch`: every prompt once."""
    groups: dict[int, list[int]] = {}
    padding = cache_of(model.network).padding
    for index, prompt in enumerate(prompts):
        groups.setdefault(0 if padding else len(prompt), []).append(index)
    limits = (settings.max_new_tokens, batch_size, cache_tokens_of(model.network))
    return [
        [group[index] for index in batch]
        for group in groups.values()
        for batch in answered_together([prompts[index] for index in group], *limits)
    ]


def answer_batch(
    model: Model, prompts: Sequence[Sequence[int]], settings: Generation
) -> list[Answer]:
    """Answers to one batch of prompts; if memory runs out, to its two halves in turn, and for all
    batches after it."""
    stop_ids, arguments = model.prompt_format.stop_ids, _generate_arguments(model, settings)
    network, half = model.network.eval(), len(prompts) // 2
    if len(prompts) <= _MOST_ROWS.get(network, len(prompts)):
        try:
            found = generate_ids(network, prompts, stop_ids, settings.max_new_tokens, arguments)
            return [_decoded(model, ids) for ids in found]
        except (RuntimeError, MemoryError) as error:
            if len(prompts) == 1 or not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        _MOST_ROWS[network] = len(prompts) - half
    parts = (prompts[:half], prompts[half:])
    return [answer for part in parts for answer in answer_batch(model, part, settings)]


def _decoded(model: Model, ids: Sequence[int]) -> Answer:
    stopped = bool(ids) and ids[-1] in model.prompt_format.stop_ids
    kept = ids[:-1] if stopped else ids
    return Answer(model.prompt_format.reader.text(kept), len(kept), stopped)


@torch.no_grad()
def stream_answer(
    model: Model,
    prompt: Sequence[int],
    settings: Generation,
    on_text: Callable[[str], object] | None,
) -> Answer:
    """One answer, whose text is also given to `on_text` piece by piece as it is generated."""
    ids = torch.tensor([list(prompt)], device=model.device)
    inputs = generation_inputs(model.network, ids, torch.ones_like(ids))
    with generating(model.network, inputs["attention_mask"]):
        output = causal_model(model.network.eval()).generate(
            **inputs,
            streamer=AnswerStreamer(model.prompt_format, on_text) if on_text is not None else None,
            max_new_tokens=settings.max_new_tokens,
            use_cache=cache_of(model.network).right,
            **_generate_arguments(model, settings),
        )
    return _decoded(model, output[0, inputs["input_ids"].shape[1] :].tolist())


def _generate_arguments(model: Model, settings: Generation) -> dict[str, Any]:
    """Arguments of `generate` (transformers' GenerationConfig); temperature 0 is greedy."""
    arguments: dict[str, Any] = {
        "repetition_penalty": settings.repetition_penalty,
        "eos_token_id": list(model.prompt_format.stop_ids),
        "pad_token_id": model.prompt_format.pad_id,
        "do_sample": settings.temperature > 0,
    }
    if settings.temperature > 0:
        arguments |= settings.model_dump(include={"temperature", "top_p", "top_k"})
    return arguments


# Decoding


def answered_together(
    prompts: Sequence[Sequence[int]], new_tokens: int, batch_size: int, cache_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts in batches of similar size, every prompt once, the longest first.

    A batch has at most `batch_size` rows, and at most `cache_tokens` tokens in its KV cache if
    every answer has `new_tokens`.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    while order:
        longest = len(prompts[order[0]]) + new_tokens
        count = max(1, min(batch_size, cache_tokens // longest))
        batches = math.ceil(len(order) / count)
        count = math.ceil(len(order) / batches)  # of similar size
        yield order[:count]
        order = order[count:]


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    arguments: Mapping[str, Any],
) -> list[list[int]]:
    """New token ids of each prompt, up to and including its stop token.

    `arguments` are those of `generate`; sampling draws from torch's global generator.
    """
    network, stops = causal_model(model), torch.tensor(list(stop_ids), device=model.device)
    inputs = _inputs(model, prompts)
    cached = cache_of(model)
    # A state space's cache cannot lose rows, and in many models cannot take several tokens; a soft
    # prompt is embedded at once.
    in_chunks = cached.grows and ("cache" in inputs or not virtual_tokens(model))
    in_chunks &= inputs["input_ids"].numel() > PREFILLED_TOKENS
    chunk = max(1, PREFILLED_TOKENS // len(prompts)) if in_chunks else None
    answers: list[list[int]] = [[] for _ in prompts]
    unfinished = list(range(len(prompts)))
    done = 0
    while True:
        start = inputs["input_ids"].shape[1]
        some_finished = StoppingCriteriaList([_SomeFinished(stops, start)])
        with generating(model, inputs["attention_mask"]):
            output: Any = network.generate(
                **inputs,
                **arguments,
                use_cache=cached.right,
                max_new_tokens=max_new_tokens - done,
                prefill_chunk_size=chunk,
                stopping_criteria=some_finished if cached.grows else None,
                return_dict_in_generate=True,
            )
        ids, cache = output.sequences, output.cache
        for row, new in zip(unfinished, ids[:, start:].tolist(), strict=True):
            answers[row] += new
        done += ids.shape[1] - start
        finished = torch.isin(ids[:, start:], stops).any(dim=1)
        stay = (~finished).nonzero()[:, 0]
        if done == max_new_tokens or not len(stay):
            return [_through_stop(answer, stop_ids) for answer in answers]
        unfinished = [unfinished[index] for index in stay.tolist()]
        if cache is not None:
            cache.batch_select_indices(stay)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - start), value=1)
        inputs = {"input_ids": ids[stay], "attention_mask": mask[stay], "cache": cache}


class _SomeFinished(StoppingCriteria):
    """Ends a call of `generate` as soon as FINISHED_SHARE of its rows have a stop token."""

    def __init__(self, stops: Tensor, start: int) -> None:
        self._stops = stops
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        finished = torch.isin(input_ids[:, self._start :], self._stops).any(dim=1)
        return (finished.sum() >= FINISHED_SHARE * len(finished)).expand(len(finished))


def _inputs(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Arguments of `generate`; the common prefix of the prompts is in the cache already."""
    shared = _common_prefix(prompts)
    network = causal_model(model)
    # A sliding window would count the padding that follows the common prefix, and a text model in a
    # class with towers has another base model.
    is_text_only = network.config.get_text_config(decoder=True) is network.config
    plain = is_text_only and cache_of(network).plain
    if not shared or virtual_tokens(model) or not plain:
        ids, mask = padded(prompts, 0)
        return generation_inputs(model, ids.to(model.device), mask.to(model.device))
    ids, mask = (each.to(model.device) for each in padded(prompts, shared))
    cache = DynamicCache(config=network.config)
    network.base_model(input_ids=ids[:1, :shared], use_cache=True, cache=cache)
    cache.batch_repeat_interleave(len(prompts))
    return {"input_ids": ids, "attention_mask": mask, "cache": cache}


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix, without a prompt's last token; 0 if it is short."""
    rows = [list(prompt) for prompt in prompts]
    common = min(common_tokens(min(rows), max(rows)), min(map(len, rows)) - 1)
    return common if len(rows) > 1 and common >= SHARED_TOKENS else 0


def _through_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((count for count, each in enumerate(ids, start=1) if each in stop_ids), len(ids))
    return ids[:end]
