"""Prompts with examples for the base of a recipe, and the time of its calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftcli.data.example import Message, RowError
from ftcli.data.prompts import few_shot
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.inference.call_speed import time_calls
from ftcli.inference.generation import Model
from ftcli.inference.open_model import ids_of
from tests.conftest import tiny_tokenizer
from tests.families import TEMPLATES

EXAMPLE = (Message("user", "kettle"), Message("assistant", "# Kettle"))


def renderer(template: str | None = None) -> Renderer:
    tokenizer = tiny_tokenizer()
    if template is not None:
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return Renderer(tokenizer)


def test_an_instruction_stands_in_the_system_turn() -> None:
    chatml = renderer()
    messages = few_shot([Message("user", "lamp")], "Be brief.", [EXAMPLE])
    text = chatml.tokenizer.decode(ids_of(chatml, messages))
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nkettle<|im_end|>\n"
        "<|im_start|>assistant\n# Kettle<|im_end|>\n<|im_start|>user\nlamp<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_without_a_system_turn_is_given_it_in_the_first_question() -> None:
    gemma = renderer("gemma")
    messages = few_shot([Message("user", "lamp")], "Be brief.", [EXAMPLE])
    with pytest.raises(RowError):
        gemma.prompt_ids(messages)
    text = gemma.tokenizer.decode(ids_of(gemma, messages))
    assert "user\nBe brief.\n\nkettle" in text
    assert text.count("Be brief.") == 1 and text.rstrip().endswith("model")


def test_other_errors_are_raised() -> None:
    with pytest.raises(RowError):
        ids_of(renderer("gemma"), [])


def test_calls_are_timed(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from ftcli.models.prompt_manifest import PromptFormat

    network: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = Model(network, PromptFormat(renderer(), (2,), 0))
    found = time_calls(model, [[[5] * 300, [6] * 400], [[5] * 3, [6] * 4]])
    assert len(found.prompt_seconds) == 2
    assert min(found.prompt_seconds) > 0 and found.seconds_per_answer_token > 0
