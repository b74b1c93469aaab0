"""Keys of configs whose defaults make no model: values as published models have them."""

from __future__ import annotations

from typing import Any

MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 500_000.0}
GLM_VISION: dict[str, Any] = {
    "text_config": {"rope_parameters": {**MROPE, "mrope_section": [8, 12, 12]}}
}
QWEN_VISION: dict[str, Any] = {
    "text_config": {"rope_parameters": {**MROPE, "mrope_section": [16, 24, 24]}}
}
# As many layers as show each kind.
LOOPED: dict[str, Any] = {
    "num_hidden_layers": 4,
    "n_layers_per_attn_res_block": 1,
    "loop_layer_index_start": 1,
    "loop_layer_index_end": 3,
}
INDEXER: dict[str, Any] = {
    "indexer_n_heads": 8,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 4,
}
BY_TYPE: dict[str, Any] = {
    kind: {"rope_type": "default", "rope_theta": 10_000.0}
    for kind in ("full_attention", "sliding_attention")
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "apertus1p5": {  # one range of tokens after the other
        "image_token_offset": 300,
        "audio_token_offset": 308,
        "vision_config": {"codebook_size": 8},
        "audio_config": {"codebook_size": 8},
    },
    "bamba": {"num_hidden_layers": 8, "attn_layer_indices": [1, 4]},
    "chameleon": {"vocabulary_map": {"<image>": 319}},
    "cohere_compass": {"text_config": {"rope_parameters": BY_TYPE}},
    "cohere_compass_text": {"rope_parameters": BY_TYPE},
    "dbrx": {"attn_config": {"rope_theta": 500_000.0, "kv_n_heads": 8, "clip_qkv": 8}},
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense"] + ["sparse"] * 11,
            "num_experts_per_tok": 6,
        }
    },
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
    },
    "dory": {
        "num_hidden_layers": 4,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
    },
    "emu3": {"vocabulary_map": {"<image>": 319}},
    "ernie4_5_vl_moe": {
        "text_config": {"rope_parameters": {**MROPE, "mrope_section": [22, 22, 20]}}
    },
    "gemma3n_text": {
        "num_hidden_layers": 10,
        "num_kv_shared_layers": 5,
        "intermediate_size": [16384] * 10,
        "activation_sparsity_pattern": [0.95] * 2 + [0.0] * 8,
    },
    "glm46v": GLM_VISION,
    "glm4v": GLM_VISION,
    "glm4v_moe": GLM_VISION,
    "glm_ocr": GLM_VISION,
    "glmga": GLM_VISION,
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "4/8"},
    "granitemoehybrid": {"num_hidden_layers": 8, "layer_types": ["mamba", "attention"] * 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8},
    "hunyuan_vl": {
        "text_config": {
            "head_dim": 128,
            "rope_parameters": {**MROPE, "mrope_section": [16, 16, 16, 16]},
        }
    },
    "inkling2_loop": {"text_config": LOOPED},
    "inkling2_loop_text": LOOPED,
    "lfm2": {"num_hidden_layers": 8, "full_attn_idxs": [2, 5]},
    "lfm2_moe": {"layer_types": (["conv"] * 3 + ["full_attention"]) * 8},
    "ministral": {"head_dim": 128},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "paddleocr_vl": QWEN_VISION,
    "qwen2_5_omni_thinker": {**QWEN_VISION, "vision_start_token_id": 310},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 310},
    "qwen2_5_vl": QWEN_VISION,
    "qwen2_vl": QWEN_VISION,
    "nemotron": {"num_key_value_heads": 8},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "step3p7": {"text_config": {"sliding_window": 512}},
    "zamba": {"num_hidden_layers": 5, "attn_layer_period": 2, "attn_layer_offset": 0},
    "diffusion_gemma": {
        "text_config": {"moe_intermediate_size": 704, "num_experts": 128, "top_k_experts": 8}
    },
}
