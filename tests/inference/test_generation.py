"""Answers in batches are those that transformers' `generate` gives to each prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from ftcli.config.recipe import Generation, PrefixTuning, PromptTuning
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.inference import caches, generation
from ftcli.inference.caches import cache_tokens_of
from ftcli.inference.generation import (
    Model,
    answer_batch,
    answer_prompts,
    answered_together,
    generate_ids,
)
from ftcli.memory import step as phases
from ftcli.models.methods import attach
from ftcli.models.prompt_manifest import PromptFormat
from ftcli.models.virtual_tokens import causal_model
from tests import architectures
from tests.families import chatml
from tests.tiers import tiers
from tests.tiny_models import falcon, lora, shake

SIZES = architectures.SIZES | {"num_hidden_layers": 2}
# Windows are shorter than the prompts and than what they have in common.
FAMILIES: dict[str, dict[str, Any]] = architectures.FAMILIES | {
    "qwen2": {},
    "gemma2": architectures.FAMILIES["gemma2"] | {"final_logit_softcapping": 20.0},
    "gpt_neox": {},
}
# They differ from the others in nothing that decoding sees.
ALIKE = ("llama tied", "qwen2", "qwen3", "gemma")
SETTINGS = Generation(max_new_tokens=12)
PROMPT_FORMAT = PromptFormat(Renderer(chatml().tokenizer), stop_ids=(96,), pad_id=0)
BEGINNING = list(range(11, 25))


@pytest.fixture(autouse=True)
def _prompts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "PREFILLED_TOKENS", 30)


def own(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(30, 97, (length,), generator=generator).tolist()


# All begin alike, one is nothing else, one is much longer than the others, two are the same.
PROMPTS = [BEGINNING + own(length, length) for length in (3, 7, 0, 30, 7, 1)]


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(5)
    config = AutoConfig.for_model(name.split()[0], **SIZES | FAMILIES[name])
    attention = "eager" if name == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms begin at one, and biases at zero
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def generated(model: PreTrainedModel, prompt: Sequence[int], settings: Generation) -> list[int]:
    """What transformers makes of a prompt by itself."""
    ids = torch.tensor([prompt])
    found: list[int] = (
        causal_model(model)
        .generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=settings.max_new_tokens,
            repetition_penalty=settings.repetition_penalty,
            eos_token_id=0,
            pad_token_id=0,
        )[0, len(prompt) :]
        .tolist()
    )
    return found


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    stops: Sequence[int],
) -> list[list[int]]:
    prompt_format = replace(PROMPT_FORMAT, stop_ids=tuple(stops))
    arguments = generation._generate_arguments(Model(model, prompt_format), settings)
    return generate_ids(model, prompts, stops, settings.max_new_tokens, arguments)


def cut(answer: list[int], stop: int) -> list[int]:
    return answer[: answer.index(stop) + 1] if stop in answer else answer


def assert_same(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    settings: Generation = SETTINGS,
) -> list[list[int]]:
    """Also where an answer ends early, for a token that some answers have and others have not."""
    whole = [generated(model, prompt, settings) for prompt in prompts]
    stop = whole[0][min(4, len(whole[0]) - 1)]
    expected = [cut(answer, stop) for answer in whole]
    assert decode(model, prompts, settings, [0, stop]) == expected
    return expected


@pytest.mark.parametrize("name", tiers(FAMILIES, *(n for n in FAMILIES if n not in ALIKE)))
def test_answers_are_those_of_generate(name: str) -> None:
    model = model_of(name)
    assert_same(model, settings=Generation(max_new_tokens=12, repetition_penalty=1.3))
    found = assert_same(model)
    assert len({tuple(answer) for answer in found}) > 3
    assert len({len(answer) for answer in found}) > 1


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize(
    "prompts",
    [
        PROMPTS[:1],
        [BEGINNING, BEGINNING],
        [own(length, length) for length in (20, 11, 3, 1)],
        [[7], [7]],
        [*PROMPTS, own(12, 1)],
    ],
    ids=["one", "the same", "nothing alike", "one token", "one is not alike"],
)
def test_any_common_prefix(name: str, prompts: list[list[int]]) -> None:
    assert_same(model_of(name), prompts)


def test_one_token() -> None:
    assert_same(model_of("llama"), settings=Generation(max_new_tokens=1))


def test_adapters_answer_as_they_are() -> None:
    model = model_of("llama")
    base = decode(model, PROMPTS, SETTINGS, [0])
    tuned = attach(model, lora(), seed=1)
    shake(tuned)
    assert_same(tuned)
    assert decode(tuned, PROMPTS, SETTINGS, [0]) != base


def test_bf16_weights_and_autocast_are_near() -> None:
    """Rounding may tip later tokens; the first one is far from even here."""
    model = model_of("llama")
    exact = decode(model, PROMPTS, SETTINGS, [0])
    with torch.autocast("cpu", torch.bfloat16):
        cast = decode(model, PROMPTS, SETTINGS, [0])
    held = decode(model.to(torch.bfloat16), PROMPTS, SETTINGS, [0])
    for found in (cast, held):
        assert sum(a[0] == b[0] for a, b in zip(found, exact, strict=True)) >= len(PROMPTS) - 1


# Less is done


@contextmanager
def tokens_seen(model: PreTrainedModel) -> Iterator[list[int]]:
    """How many tokens each forward pass reads."""
    seen: list[int] = []

    def count(_: object, arguments: tuple[torch.Tensor], __: object) -> None:
        seen.append(arguments[0].numel())

    hook = model.get_input_embeddings().register_forward_hook(count)
    try:
        yield seen
    finally:
        hook.remove()


def test_a_common_prefix_is_prefilled_once() -> None:
    model = model_of("llama")
    prompts = [BEGINNING + own(4, seed) for seed in range(8)]
    with tokens_seen(model) as seen:
        decode(model, prompts, Generation(max_new_tokens=3), [0])
    # The first passes show what the model's cache is: two rows and a token, then one row at once.
    assert seen == [2 * 14, 2, 9, len(BEGINNING), 8 * 3, 8, 8, 8]


def test_rows_that_have_ended_leave_the_batch() -> None:
    model = model_of("llama")
    whole = decode(model, PROMPTS, SETTINGS, [0])
    stops = [0, whole[0][2], whole[1][4], whole[3][6]]
    with tokens_seen(model) as seen:
        found = decode(model, PROMPTS, SETTINGS, stops)
    steps = max(map(len, found)) - 1
    standing = [sum(len(answer) > step + 1 for answer in found) for step in range(steps)]
    read = seen[-steps:]
    assert read[0] == len(PROMPTS) > read[-1]
    for count, rows in zip(standing, read, strict=True):
        assert rows >= count > (1 - generation.FINISHED_SHARE) * rows


# Sampling


def test_draws_are_repeated_by_the_seed() -> None:
    model = model_of("llama")

    def drawn(seed: int, **keys: Any) -> list[list[int]]:
        torch.manual_seed(seed)
        settings = Generation(max_new_tokens=12, **{"temperature": 1.5, **keys})
        return decode(model, PROMPTS, settings, [0])

    assert drawn(1) == drawn(1) != drawn(2)
    greedy = decode(model, PROMPTS, SETTINGS, [0])
    assert drawn(1, top_k=1) == drawn(1, top_p=1e-6) == drawn(1, temperature=1e-4) == greedy


# Where the room ends


def test_the_cache_grows_with_the_model_and_with_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama")
    assert cache_tokens_of(model) == phases.LEAST_CACHE_TOKENS
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    by_token = sum(t.numel() * t.element_size() for t in cache_of(model, 1))
    monkeypatch.setattr(phases, "LEAST_CACHE_TOKENS", 0)
    assert cache_tokens_of(model) == held // by_token
    monkeypatch.setattr(caches, "free_bytes", lambda _: 20 * by_token)
    assert cache_tokens_of(model) == 10


def cache_of(model: PreTrainedModel, tokens: int) -> list[torch.Tensor]:
    with torch.no_grad():
        cache = model(torch.ones(1, tokens, dtype=torch.long), use_cache=True).cache
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def batches_of(prompts: Sequence[Sequence[int]], rows: int, tokens: int) -> list[list[int]]:
    found = list(answered_together(prompts, 10, rows, tokens))
    assert sorted(place for batch in found for place in batch) == list(range(len(prompts)))
    lengths = [len(prompts[place]) for batch in found for place in batch]
    assert all(a >= b for a, b in pairwise(lengths))
    return found


def test_batches_have_as_many_rows_as_there_is_room_for() -> None:
    prompts = [own(length, length) for length in range(5, 25)]
    assert [len(batch) for batch in batches_of(prompts, 64, 10_000)] == [20]
    assert [len(batch) for batch in batches_of(prompts, 15, 10_000)] == [10, 10]
    for batch in batches_of(prompts, 64, 170):
        assert len(batch) * (len(prompts[batch[0]]) + 10) <= 170
    assert [len(batch) for batch in batches_of(prompts, 64, 1)] == [1] * 20


# Other models


def mamba() -> PreTrainedModel:
    torch.manual_seed(2)
    config = MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=8)
    return MambaForCausalLM(config)


def lfm2() -> PreTrainedModel:
    torch.manual_seed(2)
    config = Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])
    return Lfm2ForCausalLM(config)


@pytest.mark.parametrize(
    "build",
    [
        lambda: falcon(max_position_embeddings=256),
        lambda: attach(model_of("llama"), PrefixTuning(mode="prefix-tuning", virtual_tokens=4), 1),
        lambda: attach(model_of("llama"), PromptTuning(mode="prompt-tuning", virtual_tokens=4), 1),
        lambda: attach(
            model_of("gemma3_text"), PrefixTuning(mode="prefix-tuning", virtual_tokens=4), 1
        ),
        mamba,
        lfm2,
    ],
    ids=[
        "falcon",
        "virtual tokens",
        "a soft prompt",
        "a prefix and windows",
        "a recurrent one",
        "convolutions between",
    ],
)
def test_batches_of_other_models(build: Callable[[], PreTrainedModel]) -> None:
    network = build().eval()
    model = Model(network, PROMPT_FORMAT)
    found = answer_prompts(model, PROMPTS, SETTINGS, lambda _: None)
    assert found == [answer_batch(model, [prompt], SETTINGS)[0] for prompt in PROMPTS]
    assert len({answer.text for answer in found}) > 1


def test_other_settings_of_a_generation_config_apply() -> None:
    """Our settings go before a base's generation_config; the rest of it holds."""
    model = model_of("llama")
    model.generation_config.top_p, model.generation_config.do_sample = 0.9, True
    found = assert_same(model)
    model.generation_config.no_repeat_ngram_size = 1
    for answer in assert_same(model):
        assert len(set(answer)) == len(answer)
    assert found != assert_same(model)


def test_a_batch_is_halved_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(model_of("llama"), PROMPT_FORMAT)
    expected = answer_batch(model, PROMPTS, SETTINGS)
    tried: list[int] = []

    def scarce(network: Any, prompts: Any, *rest: Any) -> list[list[int]]:
        tried.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return generate_ids(network, prompts, *rest)

    monkeypatch.setattr(generation, "generate_ids", scarce)
    assert answer_batch(model, PROMPTS, SETTINGS) == expected
    assert tried == [6, 3, 1, 2, 1, 2], "the second half is not tried whole"
    assert answer_batch(model, PROMPTS, SETTINGS) == expected
    assert tried[6:] == [1, 2, 1, 2], "nor is a later batch"


def test_another_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> list[list[int]]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(generation, "generate_ids", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        answer_batch(Model(model_of("llama"), PROMPT_FORMAT), PROMPTS, SETTINGS)
