"""Model types whose layers are known: what their config.json leaves unsaid, and sliding windows.

Source: transformers 5.24, models/*/configuration_*.py and modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ftcli.memory.shapes.shape import (
    GLM,
    LLAMA,
    NEOX,
    PHI,
    PHI3,
    STARCODER2,
    UNGATED,
    Layout,
    QkNorm,
)

Config = Mapping[str, object]


@dataclass(frozen=True)
class Window:
    """The sliding window of a model type."""

    default: int | None
    """Tokens where config.json has no `sliding_window`; None: no window."""
    layers: Callable[[Config, int], int]
    """(config, layers) → those that use it."""
    switch: bool = False
    """No layer uses it unless `use_sliding_window` says so (Qwen)."""


def every_layer(config: Config, layers: int) -> int:
    return layers


def listed_layers(config: Config, layers: int) -> int:
    """Those that `layer_types` names, all where it is absent (Ministral)."""
    listed = _listed(config)
    return layers if listed is None else listed


def later_layers(config: Config, layers: int) -> int:
    """Those from `max_window_layers` on (28 in configuration_qwen2.py)."""
    listed = _listed(config)
    return max(0, layers - _count(config, "max_window_layers", 28)) if listed is None else listed


def layers_without_rope(config: Config, layers: int) -> int:
    """Those whose positions are not rotated (SmolLM3)."""
    listed, rotated = _listed(config), config.get("no_rope_layers")
    if listed is not None:
        return listed
    if isinstance(rotated, list):
        return rotated.count(0)
    return layers // _count(config, "no_rope_layer_interval", 4)


def all_but_every(step: int, key: str | None = None) -> Callable[[Config, int], int]:
    """Every `step`-th layer sees all tokens; `key` is where a config may give another step."""

    def layers_with_window(config: Config, layers: int) -> int:
        listed = _listed(config)
        full = layers // (_count(config, key, step) if key else step)
        return layers - full if listed is None else listed

    return layers_with_window


def _listed(config: Config) -> int | None:
    """Layers with a sliding window by `layer_types`; None without the key."""
    kinds = config.get("layer_types")
    return kinds.count("sliding_attention") if isinstance(kinds, list) else None


def _count(config: Config, key: str, default: int) -> int:
    found = config.get(key)
    return found if isinstance(found, int) and found > 0 else default


@dataclass(frozen=True)
class Key:
    """A boolean key of config.json, and its default."""

    name: str
    default: bool = False


Flag = bool | Key


@dataclass(frozen=True)
class Family:
    """How a model type's layers are built; the fields of `Shape` say what each means."""

    layout: Layout = LLAMA
    mlp_matrices: int = 3
    tied: Flag = Key("tie_word_embeddings")
    query_bias: Flag = Key("attention_bias")
    output_bias: Flag = Key("attention_bias")
    mlp_bias: Flag = False
    head_bias: bool = False
    layer_norms: int = 2
    norm_vectors: int = 1
    native_layer_norm: bool = False
    qk_norm: QkNorm = "none"
    fp32_norms: bool = False
    capped_scores: bool = False
    capped_logits: Flag = False
    logits_factor: tuple[str, float] | None = None
    """The key of a factor on the logits, and its default."""
    activation_parameters: int = 0
    window: Window | None = None
    experts_key: str | None = None
    intermediate_key: str = "intermediate_size"
    intermediate_per_hidden: int | None = None
    """Inner widths are this many hidden ones where `intermediate_key` is absent."""
    kv_heads_key: str | None = "num_key_value_heads"
    """None: config.json does not say, there are `kv_heads`."""
    kv_heads: int | None = None
    """None: as many as heads."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Sizes of absent keys; else kv heads are heads, and head_dim is hidden / heads."""
    refused: tuple[str, ...] = ()
    """Keys that add layers which ftcli does not count, when they are on."""


def _falcon(config: Config) -> Family:
    """Falcon 7B has one head of keys and one norm a layer, 40B and 180B several and two."""
    grouped = bool(config.get("new_decoder_architecture"))
    single = bool(config.get("multi_query", True)) and not grouped
    norms = config.get("num_ln_in_parallel_attn") or (2 if grouped else 1)
    return Family(
        layout=NEOX,
        mlp_matrices=2,
        tied=Key("tie_word_embeddings", True),
        query_bias=Key("bias"),
        output_bias=Key("bias"),
        mlp_bias=Key("bias"),
        layer_norms=2 if norms == 2 or not config.get("parallel_attn", True) else 1,
        norm_vectors=2,
        native_layer_norm=True,
        intermediate_key="ffn_hidden_size",
        intermediate_per_hidden=4,
        kv_heads_key="num_kv_heads" if grouped else None,
        kv_heads=1 if single else None,
    )


def _stablelm(config: Config) -> Family:
    """One norm serves attention and MLP where both read the layer's input."""
    return Family(
        query_bias=Key("use_qkv_bias"),
        output_bias=False,
        layer_norms=1 if config.get("use_parallel_residual") else 2,
        norm_vectors=2,
        native_layer_norm=True,
        defaults={"num_key_value_heads": 32},
        refused=("qk_layernorm",),
    )


_GEMMA_TIED = Key("tie_word_embeddings", True)

FAMILIES: dict[str, Family | Callable[[Config], Family]] = {
    "llama": Family(mlp_bias=Key("mlp_bias")),
    "mistral": Family(
        query_bias=False,
        output_bias=False,
        window=Window(4096, every_layer),
        defaults={"num_key_value_heads": 8},
    ),
    "ministral": Family(
        query_bias=False,
        output_bias=False,
        window=Window(4096, listed_layers),
        defaults={"num_key_value_heads": 8},
    ),
    "mixtral": Family(
        query_bias=False,
        output_bias=False,
        experts_key="num_local_experts",
        window=Window(None, every_layer),
        defaults={"num_key_value_heads": 8},
    ),
    "qwen2": Family(
        query_bias=True,
        output_bias=False,
        window=Window(4096, later_layers, switch=True),
        defaults={"num_key_value_heads": 32},
    ),
    "qwen3": Family(
        qk_norm="head",
        window=Window(4096, later_layers, switch=True),
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
    "qwen3_moe": Family(
        qk_norm="head",
        experts_key="num_experts",
        intermediate_key="moe_intermediate_size",
        window=Window(4096, every_layer, switch=True),
        defaults={"num_key_value_heads": 4},
    ),
    "gemma": Family(
        tied=_GEMMA_TIED, fp32_norms=True, defaults={"num_key_value_heads": 16, "head_dim": 256}
    ),
    "gemma2": Family(
        tied=_GEMMA_TIED,
        layer_norms=4,
        fp32_norms=True,
        capped_scores=True,
        capped_logits=Key("final_logit_softcapping", True),
        window=Window(4096, all_but_every(2)),
        defaults={"num_key_value_heads": 4, "head_dim": 256},
    ),
    "gemma3_text": Family(
        tied=_GEMMA_TIED,
        layer_norms=4,
        qk_norm="head",
        fp32_norms=True,
        capped_logits=Key("final_logit_softcapping"),
        window=Window(4096, all_but_every(6, "sliding_window_pattern")),
        # The text_config of the 4b leaves these out.
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262_208,
        },
    ),
    "phi": Family(
        layout=PHI,
        mlp_matrices=2,
        query_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
        layer_norms=1,
        norm_vectors=2,
        native_layer_norm=True,
        refused=("qk_layernorm",),
    ),
    "phi3": Family(
        layout=PHI3, query_bias=False, output_bias=False, window=Window(None, every_layer)
    ),
    "smollm3": Family(
        tied=Key("tie_word_embeddings", True),
        mlp_bias=Key("mlp_bias"),
        window=Window(None, layers_without_rope, switch=True),
        defaults={"num_key_value_heads": 4},
    ),
    "olmo": Family(norm_vectors=0, native_layer_norm=True, fp32_norms=True),
    "olmo2": Family(qk_norm="width", fp32_norms=True),
    "olmo3": Family(qk_norm="width", fp32_norms=True, window=Window(4096, all_but_every(4))),
    "granite": Family(mlp_bias=Key("mlp_bias"), logits_factor=("logits_scaling", 1.0)),
    "arcee": Family(layout=UNGATED, mlp_matrices=2, mlp_bias=Key("mlp_bias")),
    "apertus": Family(layout=UNGATED, mlp_matrices=2, qk_norm="head", activation_parameters=2),
    "hunyuan_v1_dense": Family(qk_norm="head"),
    "seed_oss": Family(
        query_bias=Key("attention_bias", True),
        output_bias=Key("attention_out_bias"),
        mlp_bias=Key("mlp_bias"),
        defaults={"num_key_value_heads": 8, "head_dim": 128},
    ),
    "glm": Family(
        layout=GLM,
        query_bias=Key("attention_bias", True),
        output_bias=False,
        defaults={"num_key_value_heads": 2, "head_dim": 128},
    ),
    "glm4": Family(
        layout=GLM,
        query_bias=Key("attention_bias", True),
        output_bias=False,
        layer_norms=4,
        defaults={"num_key_value_heads": 2, "head_dim": 128},
    ),
    "starcoder2": Family(
        layout=STARCODER2,
        mlp_matrices=2,
        tied=Key("tie_word_embeddings", True),
        query_bias=Key("use_bias", True),
        output_bias=Key("use_bias", True),
        mlp_bias=Key("use_bias", True),
        norm_vectors=2,
        native_layer_norm=True,
        window=Window(None, every_layer),
        defaults={"num_key_value_heads": 2},
    ),
    "stablelm": _stablelm,
    "gpt_neox": Family(
        layout=NEOX,
        mlp_matrices=2,
        query_bias=Key("attention_bias", True),
        output_bias=Key("attention_bias", True),
        mlp_bias=True,
        norm_vectors=2,
        native_layer_norm=True,
        kv_heads_key=None,
    ),
    "falcon": _falcon,
    "cohere": Family(
        tied=Key("tie_word_embeddings", True),
        layer_norms=1,
        fp32_norms=True,
        logits_factor=("logit_scale", 0.0625),
        refused=("use_qk_norm",),
    ),
    "cohere2": Family(
        tied=Key("tie_word_embeddings", True),
        layer_norms=1,
        fp32_norms=True,
        logits_factor=("logit_scale", 0.0625),
        window=Window(4096, all_but_every(4, "sliding_window_pattern")),
    ),
}


def family_of(model_type: str, config: Config) -> Family:
    """The family of a known model type; some depend on more of the config than its type."""
    family = FAMILIES[model_type]
    return family if isinstance(family, Family) else family(config)
