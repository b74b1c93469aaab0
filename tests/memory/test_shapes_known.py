"""Every known model, and every model type, against its published count and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcli.memory.shapes import known, shape_from_config
from ftcli.memory.shapes.families import FAMILIES

FILE: dict[str, Any] = json.loads(
    Path(known.__file__).with_name("known_models.json").read_text(encoding="utf-8")
)
KNOWN = FILE["models"]
# Models whose shape is computed; the others are measured, from the class that transformers builds.
TABLE = [model for model in KNOWN if model["config"]["model_type"] in FAMILIES]
MEASURED = [model for model in KNOWN if model not in TABLE]


def ids(models: list[dict[str, Any]]) -> list[str]:
    return [next(iter(model["hub_ids"])) for model in models]


IDS = ids(TABLE)

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
GROUPED_FALCON = {"num_kv_heads": 2, "new_decoder_architecture": True}
LISTED = {"layer_types": ["full_attention", *["sliding_attention"] * 7]}

VARIANTS: dict[str, dict[str, Any]] = {
    "arcee": {"model_type": "arcee", "mlp_bias": True},
    "cohere2, another pattern": {"model_type": "cohere2", "sliding_window_pattern": 3},
    "falcon, two norms": {"model_type": "falcon", **GROUPED_FALCON},
    "falcon, grouped, one norm": {
        "model_type": "falcon",
        "num_ln_in_parallel_attn": 1,
        **GROUPED_FALCON,
    },
    "falcon, one after another": {"model_type": "falcon", "parallel_attn": False, "bias": True},
    "falcon, as many heads": {"model_type": "falcon", "multi_query": False, "ffn_hidden_size": 96},
    "gemma2, all listed": {"model_type": "gemma2", **LISTED},
    "glm, no bias": {"model_type": "glm", "attention_bias": False},
    "gpt_neox, no bias": {"model_type": "gpt_neox", "attention_bias": False},
    "llama, biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "ministral": {"model_type": "ministral", "head_dim": 16, "sliding_window": 16, **LISTED},
    "ministral, none listed": {"model_type": "ministral", "head_dim": 16, "sliding_window": 16},
    "mistral, its default window": {"model_type": "mistral"},
    "olmo, bias": {"model_type": "olmo", "attention_bias": True},
    "qwen2, window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "max_window_layers": 5,
        "sliding_window": 16,
    },
    "qwen2, as many heads": {"model_type": "qwen2", "num_key_value_heads": None},
    "qwen3_moe, window": {
        "model_type": "qwen3_moe",
        "use_sliding_window": True,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "seed_oss, every bias": {
        "model_type": "seed_oss",
        "attention_out_bias": True,
        "mlp_bias": True,
    },
    "smollm3, window": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 16,
    },
    "smollm3, listed without rope": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 16,
        "no_rope_layers": [1, 0, 0, 1, 0, 1, 1, 1],
    },
    "stablelm, side by side": {"model_type": "stablelm", "use_parallel_residual": True},
    "starcoder2, no bias": {"model_type": "starcoder2", "use_bias": False},
}


@pytest.mark.parametrize("model", TABLE, ids=IDS)
def test_a_known_model_has_its_published_count(model: dict[str, Any]) -> None:
    assert shape_from_config(model["config"]).parameters == model["parameters"]
    assert_as_published(model["parameters"], model["published"])


@pytest.mark.parametrize("model", MEASURED, ids=ids(MEASURED))
def test_a_measured_model_has_its_published_count(model: dict[str, Any]) -> None:
    assert_as_published(model["parameters"] + model.get("left_out", 0), model["published"])
    assert model["counted_by"] in FILE["references"]


def assert_as_published(count: int, published: str) -> None:
    """Equal, or equal as rounded there."""
    if published[-1] not in "BM":
        assert count == int(published.replace(",", ""))
        return
    figure, unit = published[:-1], {"B": 1e9, "M": 1e6}[published[-1]]
    digits = len(figure.partition(".")[2])
    assert round(count / unit, digits) == float(figure)


@pytest.mark.slow
@pytest.mark.parametrize("model", MEASURED, ids=ids(MEASURED))
def test_a_measured_model_has_the_count_of_the_class_that_is_trained(model: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig

    from ftcli.models.load import model_class

    if model["config"]["model_type"] == "gemma3n":  # its vision tower is timm's
        pytest.importorskip("timm", reason="gemma3n is built with timm, which is not installed")
    config = AutoConfig.for_model(**model["config"])
    with torch.device("meta"):
        built = model_class(config).from_config(config)
    assert built.num_parameters() == model["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("model", TABLE, ids=IDS)
def test_a_known_model_has_the_layers_that_transformers_builds(model: dict[str, Any]) -> None:
    _assert_as_transformers_builds(model["config"])


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_the_layers_that_transformers_builds(name: str) -> None:
    _assert_as_transformers_builds(SMALL | VARIANTS[name])


def _assert_as_transformers_builds(raw: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = shape_from_config(raw)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(**raw, **ids)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == built.num_parameters()
    # model.layers, gpt_neox.layers or transformer.h
    layer = next(m for n, m in built.named_modules() if n.endswith((".layers", ".h")))[0]
    inside = dict(layer.named_modules())
    linear = {name: m for name, m in inside.items() if isinstance(m, torch.nn.Linear)}
    assert shape.linear_modules() == {
        name.rsplit(".", 1)[-1]: (m.in_features, m.out_features) for name, m in linear.items()
    }
    vectors = [p.numel() for p in layer.parameters() if p.dim() == 1]
    assert sum(shape.layer_vectors()) == sum(vectors)
    assert len(shape.layer_vectors()) == len(vectors) + (
        2 * shape.attention_bias if shape.fused_queries else 0
    )
    native = any(isinstance(m, torch.nn.LayerNorm) for m in inside.values())
    assert shape.native_layer_norm == (native or shape.model_type == "olmo")
    assert (shape.sliding_window, shape.windowed_layers) == _window(config)


def _window(config: Any) -> tuple[int | None, int]:
    """(tokens, layers) of the sliding window that transformers reads from its config."""
    tokens = getattr(config, "sliding_window", None)
    if tokens is None or getattr(config, "use_sliding_window", True) is False:
        return None, 0
    kinds = getattr(config, "layer_types", None)
    return tokens, kinds.count("sliding_attention") if kinds else config.num_hidden_layers


def test_every_model_type_is_tried() -> None:
    tried = [model["config"] for model in TABLE] + list(VARIANTS.values())
    assert {config["model_type"] for config in tried} == FAMILIES.keys()


def test_the_text_part_of_gemma3_is_sized_by_its_defaults() -> None:
    # What the config.json of gemma-3-4b says of its text; keras-hub counts 3,880,099,328 with
    # 262,144 words, and the config has 64 more.
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    shape = shape_from_config(text | {"num_hidden_layers": 34, "sliding_window": 1024})
    assert shape.parameters == 3_880_099_328 + 64 * 2560
    assert (shape.sliding_window, shape.windowed_layers) == (1024, 29)


def test_no_name_means_two_models() -> None:
    names = [name for model in KNOWN for name in model["hub_ids"]]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)
    configs: dict[str, str] = {}
    for model in KNOWN:
        for hub_id in model["hub_ids"].values():
            assert configs.setdefault(hub_id, str(model["config"])) == str(model["config"])


def test_every_entry_says_where_it_can_be_checked() -> None:
    checked = {key for model in KNOWN for key in model.get("checked", [])}
    counted = {model["counted_by"] for model in MEASURED}
    assert checked | counted == FILE["references"].keys()
    for model in KNOWN:
        assert model["source"].endswith(tuple(model["hub_ids"].values()))
        if "checked" not in model:
            assert any(name in FILE["source"] for name in model["hub_ids"])
