"""`config.json` → Shape, for the model types whose layers are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ftcli.errors import ModelError
from ftcli.shapes.shape import Head, QkNorm, Shape


@dataclass(frozen=True)
class _Family:
    """What a model type fixes in code (transformers 5.24, models/*/modeling_*.py), and the
    defaults of keys that a config.json may leave out (configuration_*.py)."""

    tied: bool = False
    head_dim: int | None = None
    """None: hidden / heads."""
    layer_norms: int = 2
    qk_norm: QkNorm = "none"
    attention_bias: bool | None = None
    """Biases on q, k, v whatever the config says; None: its `attention_bias`, also for o."""
    mlp_matrices: int = 3
    fp32_norms: bool = False
    fused_projections: bool = False
    capped_scores: bool = False
    experts_key: str | None = None
    intermediate_key: str = "intermediate_size"


_FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(attention_bias=False),
    "mixtral": _Family(attention_bias=False, experts_key="num_local_experts"),
    "qwen2": _Family(attention_bias=True),
    "qwen3": _Family(head_dim=128, qk_norm="head"),
    "qwen3_moe": _Family(
        qk_norm="head", experts_key="num_experts", intermediate_key="moe_intermediate_size"
    ),
    "gemma": _Family(tied=True, head_dim=256, fp32_norms=True),
    "gemma2": _Family(tied=True, head_dim=256, layer_norms=4, fp32_norms=True, capped_scores=True),
    "gemma3_text": _Family(tied=True, head_dim=256, layer_norms=4, qk_norm="head", fp32_norms=True),
    "phi3": _Family(attention_bias=False, fused_projections=True),
    "smollm3": _Family(tied=True),
    "olmo2": _Family(qk_norm="width", fp32_norms=True),
    "olmo3": _Family(qk_norm="width", fp32_norms=True),
    "granite": _Family(),
    "arcee": _Family(mlp_matrices=2),
}


def shape_from_config(
    config: Mapping[str, object], *, name: str = "", hub_id: str | None = None
) -> Shape:
    """The shape that a model's `config.json` describes.

    Raises ModelError: `model_type_unknown`, `config_incomplete`.
    """
    label = name or "config.json"
    model_type = _model_type(config, label)
    family = _FAMILIES[model_type]
    hidden = _size(config, "hidden_size", label)
    heads = _size(config, "num_attention_heads", label)
    biased = bool(config.get("attention_bias"))
    experts_key = family.experts_key
    return Shape(
        layers=_size(config, "num_hidden_layers", label),
        hidden=hidden,
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", label, default=heads),
        head_dim=_size(config, "head_dim", label, default=family.head_dim or hidden // heads),
        intermediate=_size(config, family.intermediate_key, label),
        vocab=_size(config, "vocab_size", label),
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        mlp_matrices=family.mlp_matrices,
        experts=_size(config, experts_key, label) if experts_key else 1,
        active_experts=_size(config, "num_experts_per_tok", label) if experts_key else 1,
        attention_bias=biased if family.attention_bias is None else family.attention_bias,
        output_bias=biased and family.attention_bias is None,
        mlp_bias=bool(config.get("mlp_bias")),
        layer_norms=family.layer_norms,
        qk_norm=family.qk_norm,
        fp32_norms=family.fp32_norms,
        fused_projections=family.fused_projections,
        capped_scores=family.capped_scores,
        head=_head(config),
        model_type=model_type,
        name=name,
        hub_id=hub_id,
    )


def _model_type(config: Mapping[str, object], label: str) -> str:
    found = config.get("model_type")
    if not isinstance(found, str) or found not in _FAMILIES:
        raise ModelError(
            "model_type_unknown",
            f"{label}: model_type {found!r} is not one whose sizes ftcli knows; "
            f"it knows {', '.join(_FAMILIES)}",
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ModelError(
            "model_type_unknown",
            f"{label}: dense and expert layers are mixed, which ftcli cannot size",
        )
    return found


def _size(config: Mapping[str, object], key: str, label: str, *, default: int | None = None) -> int:
    found = config.get(key)
    if found is None and default is not None:
        return default
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ModelError(
            "config_incomplete", f"{label}: {key} should be a positive number, found {found!r}"
        )
    return found


def _head(config: Mapping[str, object]) -> Head:
    if config.get("final_logit_softcapping"):
        return "softcapped"
    return "scaled" if config.get("logits_scaling", 1) != 1 else "plain"
