"""Tiny models of the types whose attention is our own, each with what sets its type apart."""

from __future__ import annotations

from typing import Any

from tests.tiers import tiers

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # scores far from even, so that a wrong mask shows
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama tied": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2 window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {},
    "gemma": {"num_key_value_heads": 1},
    "gemma2": {
        "sliding_window": 9,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {"sliding_window": 9, "query_pre_attn_scalar": 16},
    "mistral": {"sliding_window": 9},
    "phi3": {"tie_word_embeddings": False},
}

# Model types that are tried one by one where a test is fast.
MODEL_TYPES = (
    "llama",
    "mistral",
    "ministral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "smollm3",
    "olmo",
    "olmo2",
    "olmo3",
    "granite",
    "arcee",
    "apertus",
    "hunyuan_v1_dense",
    "seed_oss",
    "glm",
    "glm4",
    "starcoder2",
    "stablelm",
    "gpt_neox",
    "falcon",
    "cohere",
    "cohere2",
)
# Of them those that differ most; as parameters, the others are in the slow tier.
DISTINCT = ("llama", "mixtral", "gemma3_text", "phi3", "gpt_neox", "falcon", "cohere2")
DISTINCT_FIRST = tiers(MODEL_TYPES, *DISTINCT)
