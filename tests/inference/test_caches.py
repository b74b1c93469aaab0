"""Classes whose cache or padding is wrong are answered without it, and none ends in a traceback."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ftcli.config.recipe import Generation, PrefixTuning
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.errors import ModelError
from ftcli.inference.caches import cache_of
from ftcli.inference.generation import Model, answer_prompts, stream_answer
from ftcli.models.methods import attach
from ftcli.models.prompt_manifest import PromptFormat
from ftcli.models.virtual_tokens import backbone_inputs, causal_model
from tests.architectures import SIZES
from tests.families import chatml
from tests.tiny_models import shake

PROMPT_FORMAT = PromptFormat(Renderer(chatml().tokenizer), stop_ids=(0,), pad_id=0)
SETTINGS = Generation(max_new_tokens=6, temperature=0)
PROMPTS = [list(range(30, 30 + length)) for length in (21, 9, 14, 3)]


def one_by_one(model: PreTrainedModel, prompt: list[int]) -> str:
    """The most likely tokens, each from the whole text."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(SETTINGS.max_new_tokens):
            found = causal_model(model)(**backbone_inputs(model, ids))
            ids = torch.cat((ids, found.logits[:, -1:].argmax(-1)), dim=1)
            if ids[0, -1] == 0:
                break
    answer = ids[0, len(prompt) :].tolist()
    return PROMPT_FORMAT.reader.text(answer[:-1] if answer[-1] == 0 else answer)


def assert_answered(network: PreTrainedModel) -> None:
    model = Model(network.eval(), PROMPT_FORMAT)
    wanted = [one_by_one(network, prompt) for prompt in PROMPTS]
    assert [each.text for each in answer_prompts(model, PROMPTS, SETTINGS)] == wanted
    assert stream_answer(model, PROMPTS[0], SETTINGS, None).text == wanted[0]


def of_type(model_type: str, **keys: Any) -> PreTrainedModel:
    torch.manual_seed(4)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES | keys)).eval()


class Forgetful(LlamaForCausalLM):  # type: ignore[misc]
    """Counts the tokens after its cache from zero."""

    def forward(self, input_ids: Any = None, cache: Any = None, **keys: Any) -> Any:
        if cache is not None and input_ids.shape[1] == 1:
            keys["position_ids"] = torch.zeros_like(input_ids)
        return super().forward(input_ids, cache=cache, **keys)


class Uncached(LlamaForCausalLM):  # type: ignore[misc]
    """Raises where it is given a cache with tokens."""

    def forward(self, input_ids: Any = None, cache: Any = None, **keys: Any) -> Any:
        if cache is not None and cache.get_seq_length():
            raise ValueError("no layer of this cache has a length")
        return super().forward(input_ids, cache=cache, **keys)


class Mute(LlamaForCausalLM):  # type: ignore[misc]
    def generate(self, *_: Any, **__: Any) -> Any:
        raise ValueError("it scores texts")


class Blind(GPT2LMHeadModel):  # type: ignore[misc]
    """Counts masked padding as positions."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **keys: Any) -> Any:
        return super().forward(input_ids, **keys)


@pytest.mark.parametrize("kind", [Forgetful, Uncached])
def test_a_cache_that_is_wrong_is_not_used(kind: Any) -> None:
    torch.manual_seed(4)
    network = kind(LlamaConfig(**SIZES)).eval()
    found = cache_of(network)
    assert (found.right, found.padding, found.grows) == (False, True, False)
    assert_answered(network)


def test_rows_are_not_padded_where_padding_counts() -> None:
    torch.manual_seed(4)
    network = Blind(GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=4)).eval()
    shake(network)
    found = cache_of(network)
    assert (found.right, found.padding) == (True, False)
    assert_answered(network)


def test_a_class_that_cannot_generate_is_an_error_with_its_cause() -> None:
    network = Mute(LlamaConfig(**SIZES)).eval()
    with pytest.raises(
        ModelError, match=r"Mute cannot generate with transformers .*\(it scores texts\)"
    ):
        answer_prompts(Model(network, PROMPT_FORMAT), PROMPTS, SETTINGS)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2"])
def test_caches_of_common_types_are_used(model_type: str) -> None:
    found = cache_of(of_type(model_type))
    assert found.right and found.padding and found.grows
    keys_and_values = 2 * 4 * SIZES["num_key_value_heads"] * 16  # fp32, of a width of 16
    assert found.token_bytes == SIZES["num_hidden_layers"] * keys_and_values


@pytest.mark.parametrize(("model_type", "layers"), [("recurrent_gemma", 2), ("xlstm", 3)])
def test_types_whose_cache_fails_are_answered(model_type: str, layers: int) -> None:
    """RecurrentGemma's third layer is the first that a cache can ask for its length."""
    network = of_type(model_type, num_heads=4, num_hidden_layers=layers)
    assert not cache_of(network).right
    assert_answered(network)


def test_a_window_that_counts_padding_is_seen_with_a_prefix() -> None:
    """Without one the same model is answered in padded batches."""
    network = of_type("mistral", sliding_window=24)
    assert cache_of(network).padding
    adapted = attach(network, PrefixTuning(mode="prefix-tuning", virtual_tokens=6), seed=1)
    shake(adapted)
    assert_answered(adapted)
