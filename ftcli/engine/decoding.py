"""Answers to prompts, token by token: what prompts begin with is computed once, who has ended goes.

The plain path is `generate` of transformers, which gives the same greedy answers (fp32) and is
taken for the models that `decodes` refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ftcli.engine.kernels.lora import settled
from ftcli.engine.model import shape_of
from ftcli.engine.shared_cache import (
    NOWHERE,
    RowCache,
    View,
    beginning_of,
    shared_cache_attention,
)
from ftcli.engine.together import Room, common_start
from ftcli.engine.virtual import causal_model, virtual_tokens
from ftcli.recipe import Generation
from ftcli.shapes.interface import DECODED_TYPES
from ftcli.vram.moments import LEAST_CACHE_TOKENS, PREFILLED_TOKENS, cache_tokens

# What a base's generation_config may say without changing our answers: our own settings go before
# it, or it is about other things.
HARMLESS = {
    *("transformers_version", "_from_model_config", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty"),
    *("max_length", "max_new_tokens", "use_cache", "cache_implementation"),
    *("output_attentions", "output_hidden_states", "return_dict_in_generate"),
}
# What rows begin with is copied into each of them where all copies have so many tokens at most:
# reading it apart from the rest takes a layer as long as reading so many (measured on a CPU).
COPIED_TOKENS = 1024


def decodes(model: PreTrainedModel) -> bool:
    """Whether the loop of this file gives a model's answers."""
    shape = shape_of(model)
    config = causal_model(model).generation_config
    return (
        shape is not None
        and shape.model_type in DECODED_TYPES
        and not shape.stretched_positions
        and not virtual_tokens(model)
        and (config is None or config.to_diff_dict().keys() <= HARMLESS)
    )


def room_of(model: PreTrainedModel, rows: int) -> Room:
    """At most so many rows, and cache in proportion to the weights (ftcli.vram.moments)."""
    shape = shape_of(model)
    if shape is None:
        return Room(rows, LEAST_CACHE_TOKENS)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    size = 2 * shape.layers * shape.kv_width * causal_model(model).dtype.itemsize
    return Room(rows, cache_tokens(weights, size) - COPIED_TOKENS)


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    """New tokens after each prompt, the one that ended it among them, for a model that `decodes`.

    Draws from torch's own random numbers where there is a temperature.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]), reverse=True)
    with torch.no_grad(), settled(model):
        rows = _Rows(causal_model(model), [prompts[row] for row in order], settings, stop_ids)
        answers = dict(zip(order, rows.answer(), strict=True))
    return [answers[row] for row in range(len(prompts))]


class _Rows:
    """Rows of a batch, the longest first; a row that has ended gives its place to the last one."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        settings: Generation,
        stop_ids: Sequence[int],
    ) -> None:
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.most = settings.max_new_tokens
        self.processors = _processors(settings)
        self.samples = settings.temperature > 0
        self.shared = common_start(prompts)
        self.longest = len(prompts[0])
        self.lengths = [len(prompt) for prompt in prompts]
        self.ids, self.positions = _laid(prompts, self.most, model.device)
        # A short row's columns begin with what stands before all rows already.
        own = self.positions[:, self.shared :]
        own = own.masked_fill(own < self.shared, NOWHERE)
        copied = self.shared if len(prompts) * self.shared <= COPIED_TOKENS else 0
        copies = torch.arange(copied, device=own.device).expand(len(own), -1)
        self.positions = torch.cat((copies, own), dim=1)
        self.first = self.shared - copied
        """The column that is the cache's first."""
        self.cache = RowCache(*self.positions.shape)
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.beginning: list[tuple[Tensor, Tensor]] = []

    def answer(self) -> list[list[int]]:
        """Tokens after each prompt."""
        if self.shared:
            self._prefill_beginning()
        standing = list(range(len(self.answers)))
        with shared_cache_attention(self.model):
            logits = self._prefill()
            if self.cache.copied:
                self.beginning = []
            for end in range(self.longest, self.longest + self.most):
                tokens = self._choose(logits, end)
                for row, token in zip(standing, tokens.tolist(), strict=True):
                    self.answers[row].append(token)
                standing = self._drop_ended(standing, end)
                if not standing or end + 1 == self.longest + self.most:
                    break
                logits = self._forward(slice(0, len(standing)), slice(self.first, end + 1), 1)
        return self.answers

    def _prefill_beginning(self) -> None:
        """What all rows begin with, by the model's own attention."""
        cache = DynamicCache()  # without a config it keeps what is before a window
        ids = self.ids[-1:, self.longest - self.lengths[-1] :][:, : self.shared]
        self.model.base_model(input_ids=ids, cache=cache, use_cache=True)
        self.beginning = beginning_of(cache)
        if self.first < self.shared:
            rows, columns = self.positions.shape
            self.cache = RowCache(rows, columns, self.beginning)

    def _prefill(self) -> Tensor:
        """Logits after each prompt: some rows at once, those of like length."""
        found, start = [], 0
        while start < len(self.lengths):
            own = self.lengths[start] - self.shared
            end = min(len(self.lengths), start + max(1, PREFILLED_TOKENS // own))
            columns = slice(self.longest - own, self.longest)
            found.append(self._forward(slice(start, end), columns, own))
            start = end
        return torch.cat(found)

    def _forward(self, rows: slice, seen: slice, count: int) -> Tensor:
        """Logits [rows, vocab] after the last column seen, whose last `count` are new."""
        new = slice(seen.stop - count, seen.stop)
        own = slice(seen.start - self.first, seen.stop - self.first)
        keys = self.positions[rows, own]
        queries = keys[:, -count:]
        self.cache.rows, self.cache.columns = rows, own
        # An index copies what it takes; of a slice the head would make a product for each row, with
        # a copy of its weights for each.
        kept = 1 if count == 1 else torch.tensor([count - 1])
        logits: Tensor = self.model(
            input_ids=self.ids[rows, new],
            position_ids=queries.masked_fill(queries == NOWHERE, 0),
            cache=self.cache,
            use_cache=True,
            logits_to_keep=kept,
            view=View(self.beginning, queries, keys),
        ).logits[:, -1]
        return logits.float()

    def _choose(self, logits: Tensor, end: int) -> Tensor:
        """The next token of each row [rows], put into column `end` of the ids."""
        scores = self.processors(self.ids[: len(logits), :end], logits)
        if self.samples:
            tokens = torch.multinomial(scores.softmax(dim=-1), 1)[:, 0]
        else:
            tokens = scores.argmax(dim=-1)
        self.ids[: len(logits), end] = tokens
        return tokens

    def _drop_ended(self, standing: list[int], end: int) -> list[int]:
        """Which rows go on, in their places."""
        ends = [self.answers[row][-1] in self.stop_ids for row in standing]
        count = len(standing) - sum(ends)
        targets = [place for place in range(count) if ends[place]]
        if targets:
            sources = [place for place in range(count, len(ends)) if not ends[place]]
            moved = [torch.tensor(some, device=self.ids.device) for some in (sources, targets)]
            self.cache.move(*moved)
            for tensor in (self.ids, self.positions):
                tensor[moved[1]] = tensor[moved[0]]
            for source, target in zip(sources, targets, strict=True):
                standing[target] = standing[source]
        return standing[:count]


def _laid(
    prompts: Sequence[Sequence[int]], new_tokens: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids and positions [rows, longest + new] of prompts filled up on the left.

    What fills up has the row's own first token, which a repetition penalty knows already.
    """
    longest = max(map(len, prompts))
    rows = [[p[0]] * (longest - len(p)) + list(p) + [0] * new_tokens for p in prompts]
    filled = torch.tensor([[longest - len(prompt)] for prompt in prompts])
    positions = torch.arange(longest + new_tokens) - filled
    positions = positions.masked_fill(positions < 0, NOWHERE)
    return torch.tensor(rows).to(device), positions.to(device)


def _processors(settings: Generation) -> LogitsProcessorList:
    """transformers' own, in the order of its `generate`."""
    found = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature > 0:
        if settings.temperature != 1:
            found.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            found.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            found.append(TopPLogitsWarper(settings.top_p))
    return found
