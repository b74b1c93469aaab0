"""`config.json` → Shape, for the model types whose layers are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from ftcli.errors import ModelError
from ftcli.memory.shapes.families import FAMILIES, Family, Flag, family_of
from ftcli.memory.shapes.shape import Head, Shape

# Keys of a config that say how much is dropped: of attention weights, and of hidden states (Phi-3).
DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop")


def shape_from_config(
    config: Mapping[str, object], *, name: str = "", hub_id: str | None = None
) -> Shape:
    """The shape that a model's `config.json` describes.

    Raises ModelError: `model_type_unknown`, `config_incomplete`.
    """
    label = name or "config.json"
    model_type = _model_type(config, label)
    family = family_of(model_type, config)
    _refuse_what_is_not_counted(config, family, label)
    return replace(
        _sizes(config, family, label),
        attention_bias=_is_on(config, family.query_bias),
        output_bias=_is_on(config, family.output_bias),
        mlp_bias=_is_on(config, family.mlp_bias),
        head_bias=family.head_bias,
        layer_norms=family.layer_norms,
        norm_vectors=family.norm_vectors,
        native_layer_norm=family.native_layer_norm,
        qk_norm=family.qk_norm,
        fp32_norms=family.fp32_norms,
        layout=family.layout,
        capped_scores=family.capped_scores,
        activation_parameters=family.activation_parameters,
        head=_head(config, family),
        dropout=any(config.get(name) for name in DROPOUTS),
        stretched_positions=_stretches_positions(config),
        stored_bytes=_stored_bytes(config),
        model_type=model_type,
        name=name,
        hub_id=hub_id,
    )


def _stretches_positions(config: Mapping[str, object]) -> bool:
    """`rope_parameters`, or `rope_scaling` as transformers called it before 5; maybe by layer type
    (transformers 5.24, modeling_rope_utils.py, dynamic_rope_update)."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    kinds = [found, *found.values()] if isinstance(found, Mapping) else []
    names = [kind.get("rope_type", kind.get("type")) for kind in kinds if isinstance(kind, Mapping)]
    return any(name in ("dynamic", "longrope") for name in names)


def _stored_bytes(config: Mapping[str, object]) -> Literal[2, 4]:
    """By `dtype`, or `torch_dtype` as transformers called it before 5; 16 bits where it is silent,
    as the published models of today."""
    return 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2


def _sizes(config: Mapping[str, object], family: Family, label: str) -> Shape:
    """The part of a shape that is numbers."""
    layers = _size(config, "num_hidden_layers", label, family)
    hidden = _size(config, "hidden_size", label, family)
    heads = _size(config, "num_attention_heads", label, family)
    window = _sliding_window(config, family, label)
    experts_key = _experts_key(config, family)
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, family, label, heads),
        head_dim=_size(config, "head_dim", label, family, default=hidden // heads),
        intermediate=_intermediate(config, family, label, hidden),
        vocab=_size(config, "vocab_size", label, family),
        tied=_is_on(config, family.tied),
        mlp_matrices=family.mlp_matrices,
        experts=_size(config, experts_key, label, family) if experts_key else 1,
        active_experts=_size(config, "num_experts_per_tok", label, family) if experts_key else 1,
        sliding_window=window,
        windowed_layers=family.window.layers(config, layers) if family.window and window else 0,
    )


def _model_type(config: Mapping[str, object], label: str) -> str:
    found = config.get("model_type")
    others = [key for key in ("vision_config", "audio_config", "text_config") if key in config]
    if others:
        raise ModelError(
            "model_type_unknown",
            f"{label}: {found!r} joins a text model with others ({', '.join(others)}), and ftcli "
            "sizes text models only; to size that part, save its text_config as a config.json",
        )
    if not isinstance(found, str) or found not in FAMILIES:
        raise ModelError(
            "model_type_unknown",
            f"{label}: model_type {found!r} is not one whose layers ftcli knows; it knows "
            f"{', '.join(FAMILIES)}; choose a model of these, since sizes guessed from another "
            "type would be wrong",
        )
    return found


def _refuse_what_is_not_counted(config: Mapping[str, object], family: Family, label: str) -> None:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ModelError(
            "model_type_unknown",
            f"{label}: dense and expert layers are mixed, which ftcli cannot size",
        )
    for key in family.refused:
        if config.get(key):
            raise ModelError(
                "model_type_unknown",
                f"{label}: {key} is on, which adds norms that ftcli cannot size",
            )


def _size(
    config: Mapping[str, object],
    key: str,
    label: str,
    family: Family,
    *,
    default: int | None = None,
) -> int:
    # An absent key has its class's default; null has what transformers works out.
    found = config.get(key, family.defaults.get(key))
    found = default if found is None else found
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ModelError(
            "config_incomplete", f"{label}: {key} should be a positive number, found {found!r}"
        )
    return found


def _experts_key(config: Mapping[str, object], family: Family) -> str | None:
    """transformers 5 saves `num_experts` under the name that other families have for it."""
    renamed = family.experts_key == "num_experts" and "num_local_experts" in config
    return "num_local_experts" if renamed else family.experts_key


def _kv_heads(config: Mapping[str, object], family: Family, label: str, heads: int) -> int:
    key = family.kv_heads_key
    if key is None:
        return heads if family.kv_heads is None else family.kv_heads
    return _size(config, key, label, family, default=heads)


def _intermediate(config: Mapping[str, object], family: Family, label: str, hidden: int) -> int:
    per_hidden = family.intermediate_per_hidden
    default = per_hidden * hidden if per_hidden else None
    return _size(config, family.intermediate_key, label, family, default=default)


def _is_on(config: Mapping[str, object], flag: Flag) -> bool:
    return flag if isinstance(flag, bool) else bool(config.get(flag.name, flag.default))


def _sliding_window(config: Mapping[str, object], family: Family, label: str) -> int | None:
    """Tokens that a windowed layer sees; None where no layer has a window."""
    window = family.window
    if window is None or (window.switch and not config.get("use_sliding_window")):
        return None
    if config.get("sliding_window", window.default) is None:
        return None
    return _size(config, "sliding_window", label, family, default=window.default)


def _head(config: Mapping[str, object], family: Family) -> Head:
    if _is_on(config, family.capped_logits):
        return "softcapped"
    key, default = family.logits_factor or ("", 1.0)
    return "scaled" if config.get(key, default) != 1 else "plain"
