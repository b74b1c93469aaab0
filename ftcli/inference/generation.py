"""Scoring and generation, as eval, merge and generate share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from ftcli.config.recipe import Generation
from ftcli.inference.answer import Answer
from ftcli.inference.decoding import answered_together, cache_tokens_of, generate_ids
from ftcli.memory.phases import ANSWERED_ROWS
from ftcli.models.batches import Row, length_batches
from ftcli.models.device import is_out_of_memory
from ftcli.models.loss import row_losses
from ftcli.models.prompt_manifest import PromptContract
from ftcli.models.virtual_tokens import causal_model, generation_inputs
from ftcli.training.laying import Laying, Padded, laying_of_network

Moved = Callable[[int], None]

# Rows at once: scoring fills the cores with few; decoding waits for memory, so many cost little.
SCORED_ROWS = 4
# Rows of like length among which those are found that begin alike.
BLOCK_ROWS = 64


@dataclass(frozen=True)
class Model:
    """A model ready to answer."""

    network: PreTrainedModel
    contract: PromptContract
    fast: bool = True
    """The levers of docs/performance.md may be taken (training.fast)."""

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device


def context_tokens(model: Model) -> int | None:
    """Tokens that the model reads at most, as its configuration says."""
    found = getattr(model.network.config, "max_position_embeddings", None)
    return int(found) if found else None


def seed_sampling(seed: int) -> None:
    """Make what follows draw the same tokens each time."""
    torch.manual_seed(seed)


def score_rows(model: Model, rows: Sequence[Row], moved: Moved) -> tuple[list[float], list[int]]:
    """Summed negative log-likelihood and labelled tokens of each row, in the rows' own order."""
    losses, counts = [0.0] * len(rows), [0] * len(rows)
    done = 0
    for batch in scored_together(model, rows):
        for index, scored in zip(batch, score_batch(model, [rows[i] for i in batch]), strict=True):
            losses[index], counts[index] = scored
        done += len(batch)
        moved(done)
    return losses, counts


def scored_together(model: Model, rows: Sequence[Row]) -> Iterator[list[int]]:
    """Places of rows in batches for `score_batch`: all of them once, the longest rows first."""
    laying = _laying(model, rows)
    for block in length_batches([len(row["input_ids"]) for row in rows], BLOCK_ROWS):
        for part in laying.divide([rows[place]["input_ids"] for place in block], SCORED_ROWS):
            yield [block[place] for place in part]


def score_batch(model: Model, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """Summed negative log-likelihood (nats) and labelled tokens of a few rows at once."""
    batch = _laying(model, ()).lay(rows).to(model.device)
    summed, counted = row_losses(model.network.eval(), batch)
    return list(zip(summed.tolist(), counted.tolist(), strict=True))


def _laying(model: Model, rows: Sequence[Row]) -> Laying:
    """How rows are laid out; those that are given tell how large a batch may be."""
    if not model.fast:
        return Padded(model.contract.pad_id)
    return laying_of_network(
        model.network, [row["input_ids"] for row in rows[:BLOCK_ROWS]], model.contract.pad_id
    )


def answer_prompts(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    moved: Moved,
    rows_at_once: int = ANSWERED_ROWS,
) -> list[Answer]:
    """Answers to tokenised prompts, batch by batch, in the prompts' own order."""
    answers: dict[int, Answer] = {}
    for batch in answer_batches(model, prompts, settings, rows_at_once):
        texts = answer_batch(model, [prompts[index] for index in batch], settings)
        answers |= dict(zip(batch, texts, strict=True))
        moved(len(answers))
    return [answers[index] for index in range(len(prompts))]


def answer_batches(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    rows_at_once: int = ANSWERED_ROWS,
) -> list[list[int]]:
    """Places of prompts in batches for `answer_batch`: all of them once."""
    cache_tokens = cache_tokens_of(model.network)
    return list(answered_together(prompts, settings.max_new_tokens, rows_at_once, cache_tokens))


def answer_batch(
    model: Model, prompts: Sequence[Sequence[int]], settings: Generation
) -> list[Answer]:
    """Answers to a few prompts at once; fewer at once where memory lacks."""
    try:
        return _answer_batch(model, prompts, settings)
    except (RuntimeError, MemoryError) as error:
        if len(prompts) == 1 or not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    half = len(prompts) // 2
    parts = (prompts[:half], prompts[half:])
    return [answer for part in parts for answer in answer_batch(model, part, settings)]


def _answer_batch(
    model: Model, prompts: Sequence[Sequence[int]], settings: Generation
) -> list[Answer]:
    found = generate_ids(
        model.network.eval(),
        prompts,
        model.contract.stop_ids,
        settings.max_new_tokens,
        _generate_arguments(model, settings),
    )
    return [_answer(model, row) for row in found]


def stream_answer(model: Model, prompt: Sequence[int], settings: Generation) -> Iterator[str]:
    """Pieces of one answer as they are generated."""
    from threading import Thread

    streamer = _AnswerStreamer(
        model.contract.renderer.tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    streamer.stop_ids = model.contract.stop_ids
    failed: list[BaseException] = []
    arguments = (model, prompt, settings, streamer, failed)
    worker = Thread(target=_generate_into, args=arguments, daemon=True)
    worker.start()
    yield from streamer
    worker.join()
    if failed:
        raise failed[0]


class _AnswerStreamer(TextIteratorStreamer):
    """Text without the token that ends it, which need not be a special one."""

    stop_ids: tuple[int, ...] = ()

    def put(self, value: Tensor) -> None:
        if self.next_tokens_are_prompt or value.flatten()[0].item() not in self.stop_ids:
            super().put(value)


def _generate_into(
    model: Model,
    prompt: Sequence[int],
    settings: Generation,
    streamer: BaseStreamer,
    failed: list[BaseException],
) -> None:
    ids = torch.tensor([list(prompt)], device=model.device)
    try:
        with torch.no_grad():
            causal_model(model.network.eval()).generate(
                **generation_inputs(model.network, ids, torch.ones_like(ids)),
                streamer=streamer,
                max_new_tokens=settings.max_new_tokens,
                **_generate_arguments(model, settings),
            )
    except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
        failed.append(error)
        streamer.end()


def _generate_arguments(model: Model, settings: Generation) -> dict[str, Any]:
    """Our words in transformers' (GenerationConfig); 0 as temperature is greedy."""
    arguments: dict[str, Any] = {
        "repetition_penalty": settings.repetition_penalty,
        "eos_token_id": list(model.contract.stop_ids),
        "pad_token_id": model.contract.pad_id,
        "do_sample": settings.temperature > 0,
    }
    if settings.temperature > 0:
        arguments |= {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }
    return arguments


def _answer(model: Model, ids: Sequence[int]) -> Answer:
    ends = [place for place, id_ in enumerate(ids) if id_ in model.contract.stop_ids]
    kept = ids[: ends[0]] if ends else ids
    text = model.contract.renderer.tokenizer.decode(kept, skip_special_tokens=True)
    return Answer(str(text), len(kept), bool(ends))
