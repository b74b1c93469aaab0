"""Greedy answers with several batch sizes, on the real small model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ftcli.config.recipe import Generation
from ftcli.data.example import Message
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.inference.generation import Answer, Model, answer_batch, answer_batches
from ftcli.models.load import load_tokenizer
from ftcli.models.prompt_manifest import PromptFormat
from tests.conftest import COLOURS, THINGS

SETTINGS = Generation(max_new_tokens=32)
# bf16 keeps 8 bits: a logit of 16 to 32 is known to 1/8, and each may be off by a few such steps.
TIE_TOLERANCE = 0.5


def open_model(folder: Path, dtype: torch.dtype) -> Model:
    renderer = Renderer(load_tokenizer(str(folder), None))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return Model(network, PromptFormat(renderer, renderer.stop_ids, renderer.pad_id))


def prompts(model: Model) -> list[list[int]]:
    """Questions of many lengths, so that short ones are padded."""
    kinds = ("Describe a {} {} for a shop.", "Why is the {} {} on the table in the hall?", "{} {}?")
    asked = [
        kinds[number % 3].format(COLOURS[number % 8], THINGS[number // 3 % 8])
        for number in range(8)
    ]
    return [model.prompt_format.renderer.prompt_ids([Message("user", text)]) for text in asked]


def answers(model: Model, batch_size: int) -> list[Answer]:
    questions = prompts(model)
    found: dict[int, Answer] = {}
    for batch in answer_batches(model, questions, SETTINGS, batch_size):
        batch_answers = answer_batch(model, [questions[index] for index in batch], SETTINGS)
        found |= dict(zip(batch, batch_answers, strict=True))
    return [found[index] for index in range(len(questions))]


@pytest.mark.slow
def test_in_fp32_answers_are_the_same_token_for_token(small_model: Path) -> None:
    model = open_model(small_model, torch.float32)
    one = answers(model, 1)
    assert sum(answer.tokens for answer in one) > 100
    assert answers(model, 8) == one


@pytest.mark.slow
def test_in_bf16_answers_differ_only_where_two_tokens_are_nearly_equal(small_model: Path) -> None:
    model, exact = (open_model(small_model, dtype) for dtype in (torch.bfloat16, torch.float32))
    one, eight = answers(model, 1), answers(model, 8)
    tokenizer = model.prompt_format.renderer.tokenizer
    gaps = []
    for prompt, first, second in zip(prompts(model), one, eight, strict=True):
        ids = [tokenizer(a.text, add_special_tokens=False)["input_ids"] for a in (first, second)]
        if first == second:
            continue
        pairs = enumerate(zip(*ids, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(map(len, ids)))
        given = torch.tensor([[*prompt, *ids[0][:place]]])
        with torch.no_grad():
            logits = exact.network(input_ids=given).logits[0, -1]
        best = logits.topk(2).values
        gaps.append(float(best[0] - best[1]))
    assert len(gaps) < len(one)
    assert all(gap < TIE_TOLERANCE for gap in gaps), gaps
