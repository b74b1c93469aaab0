"""Jobs for a pretended GPU: models of full size without weights, rows that are really prepared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from ftcli.training.job import TrainJob
from tests.card.pretended import register_guard
from tests.card.steps import fake_job
from tests.conftest import save_recipe, tiny_tokenizer

register_guard()  # before the first backward pass of this process

LAYERS = 2
ROWS, TOKENS = 16, 300
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32},
    "qwen2": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28},
    "gemma2": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "head_dim": 256,
    },
    "mixtral": {"hidden_size": 4096, "intermediate_size": 1792, "num_attention_heads": 32},
}
VOCABULARY = {"llama": 128_256, "qwen2": 152_064, "gemma2": 256_000, "mixtral": 32_000}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora", "rank": 16},
    "qlora": {"mode": "qlora", "rank": 16},
    "bottleneck": {"mode": "bottleneck"},
    "prefix-tuning": {"mode": "prefix-tuning"},
    "prompt-tuning": {"mode": "prompt-tuning"},
}

Jobs = Callable[..., TrainJob]


def save_config(folder: Path, family: str, **sizes: Any) -> Path:
    """config.json and tokenizer of a model with two layers of full size."""
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        family,
        **{"num_key_value_heads": 4, "tie_word_embeddings": False, "dtype": "bfloat16"}
        | FAMILIES[family]
        | {"vocab_size": VOCABULARY[family], "num_hidden_layers": LAYERS}
        | {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        | {"bos_token_id": None}
        | sizes,
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def jobs_in(folder: Path) -> Jobs:
    """Makes jobs of steps with four rows of 300 tokens, which have 25 in common."""

    def made(family: str, method: str, card: str = "RTX 4090", **training: Any) -> TrainJob:
        model = save_config(folder / "model", family, **training.pop("sizes", {}))
        rows = ({"prompt": f"Product {n:03}", "completion": "x" * 271} for n in range(ROWS))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = save_recipe(
            folder,
            model,
            method=METHODS[method] | training.pop("method", {}),
            training={"max_steps": 3, "batch_size": 4} | training,
            data={"train": "rows.jsonl", "validation": 0, "test": 0, "max_length": 1024},
        )
        return fake_job(recipe, folder / "run", card)

    return made


@pytest.fixture
def job_of(tmp_path: Path) -> Jobs:
    return jobs_in(tmp_path)
