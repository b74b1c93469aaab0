"""Tiny random decoders of kinds that plain transformers differ in: towers, recurrent layers, latent
attention, factors around the head."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ftcli.models.architectures.model_class import mend_text_forward, model_class
from tests.conftest import tiny_tokenizer

TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
IDS = {"image_token_id": 500, "video_token_id": 501, "image_token_index": 500}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
RECURRENT = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    },
}


def _with_tower(text: dict[str, Any], tower: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"text_config": TEXT | text, "vision_config": TOWER | tower, **IDS, **keys}


DECODERS: dict[str, dict[str, Any]] = {
    "gemma3": _with_tower(
        {"sliding_window": 64, "query_pre_attn_scalar": 16, "final_logit_softcapping": 4.0},
        {},
        mm_tokens_per_image=1,
    ),
    "llama4": _with_tower(
        {"intermediate_size_mlp": 128, "num_local_experts": 2, "interleave_moe_layer_step": 2},
        {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    ),
    "mistral3": _with_tower({"model_type": "mistral"}, {"head_dim": 16}, spatial_merge_size=1),
    "molmo2": _with_tower(
        {},
        {"head_dim": 16, "num_key_value_heads": 2, "num_hidden_layers": 2, "image_size": [28, 28]},
        adapter_config={
            "vision_feature_layer": [0, 1],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 64,
            "text_hidden_size": 64,
        },
    ),
    "qwen3_5": _with_tower(
        RECURRENT,
        {"num_heads": 2, "depth": 1, "out_hidden_size": 64, "num_position_embeddings": 16},
        vision_start_token_id=502,
        vision_end_token_id=503,
    ),
    "gemma3n_text": {
        **TEXT,
        "intermediate_size": [128, 128],
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 512,
        "laurel_rank": 16,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "sliding_window": 64,
    },
    "lfm2": {**TEXT, "layer_types": ["conv", "full_attention"], "block_ff_dim": 128},
    "deepseek_v3": {**TEXT, **LATENT, "first_k_dense_replace": 2},
    "minicpm3": {**TEXT, **LATENT, "dim_model_base": 16},
    "granite": {**TEXT, "logits_scaling": 4.0, "residual_multiplier": 0.5},
}


def decoder_config(model_type: str, **keys: Any) -> PreTrainedConfig:
    values = deepcopy(DECODERS[model_type])
    ids = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}
    for part in (values, values.get("text_config", {})):
        part.update(ids)
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **values | keys)
    return config


def decoder(model_type: str, **keys: Any) -> PreTrainedModel:
    """A random model of the class that ftcli trains, in evaluation mode."""
    config = decoder_config(model_type, **keys)
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config).from_config(config, dtype=torch.float32)
    mend_text_forward(model)
    return model.eval()


def save_decoder(folder: Path, model_type: str, **keys: Any) -> Path:
    """As `decoder`, with the tiny tokenizer, in bf16."""
    decoder(model_type, **keys).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
