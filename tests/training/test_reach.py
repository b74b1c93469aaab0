"""How far a model reads, by its config.json; what goes beyond is for test_smoke_test.py."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from ftcli.training.smoke.rows import context_length

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
SCALED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("model_type", "keys", "context"),
    [
        ("llama", {"max_position_embeddings": 2048}, 2048),
        ("llama", {"max_position_embeddings": 131_072, "rope_parameters": SCALED}, 131_072),
        (
            "qwen2",
            {
                "max_position_embeddings": 32_768,
                "rope_parameters": YARN | {"original_max_position_embeddings": 32_768},
            },
            131_072,
        ),
        (
            "gemma3_text",
            {
                "max_position_embeddings": 32_768,
                "rope_parameters": {"sliding_attention": LOCAL, "full_attention": LOCAL},
            },
            32_768,
        ),
    ],
    ids=["plain", "stretched already", "stretched by a factor", "a rule for each kind of layer"],
)
def test_the_context_is_what_the_config_says_stretched_where_it_is(
    model_type: str, keys: dict[str, Any], context: int
) -> None:
    config = AutoConfig.for_model(model_type, vocab_size=97, **keys)
    assert context_length(config) == context
