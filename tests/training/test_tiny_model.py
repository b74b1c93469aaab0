"""A tiny model is the model in all that goes by name, and small in all else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftcli.config.recipe import Recipe
from ftcli.memory.adapted import last_names
from ftcli.models.architectures.find import architecture_of
from ftcli.training.smoke.tiny_config import (
    HEADS,
    HIDDEN,
    LAYERS,
    TOWER_LAYERS,
    Short,
    tiny_values,
)
from ftcli.training.smoke.tiny_model import build_tiny_model
from tests.architectures import DISTINCT, MODEL_TYPES
from tests.conftest import tiny_tokenizer
from tests.memory.counting import BY_FAMILY
from tests.tiers import tiers

LARGE: dict[str, Any] = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 400,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": None,
}


def large(family: str, **changes: Any) -> dict[str, Any]:
    """A config.json with the widths of a small real model."""
    values = {"model_type": family, **LARGE, **BY_FAMILY.get(family, {})} | changes
    if family == "falcon":  # works it out
        del values["head_dim"]
    return values


def tiny(values: dict[str, Any], *, all_layers: bool = False) -> dict[str, Any]:
    known = AutoConfig.for_model(**values).to_dict()
    return tiny_values(values, known, all_layers=all_layers)


def skeleton(values: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))


def names(model: Any) -> set[tuple[str, str]]:
    """Modules by name without the numbers of their layers, and what each is."""
    found = set()
    for name, module in model.named_modules():
        parts = [part for part in name.split(".") if not part.isdigit()]
        found.add((".".join(parts), type(module).__name__))
    return found


def recipe(**method: Any) -> Recipe:
    values = {"mode": "lora", **method}
    return Recipe.model_validate(
        {"name": "a", "model": {"id": "m"}, "method": values, "data": {"train": "rows.jsonl"}}
    )


@pytest.mark.parametrize("tied", tiers([True, False], True), ids=["tied", "untied"])
@pytest.mark.parametrize("family", tiers(MODEL_TYPES, *DISTINCT[::3]))
def test_a_tiny_model_of_every_type_has_the_names_of_the_original(family: str, tied: bool) -> None:
    original = large(family, tie_word_embeddings=tied)
    tiny_one = tiny(original)
    assert names(skeleton(tiny_one)) == names(skeleton(original))
    ours, theirs = (architecture_of(values) for values in (tiny_one, original))
    assert last_names(ours) == last_names(theirs)
    for name in ("vocab", "tied", "model_type", "head", "attention"):
        assert getattr(ours, name) == getattr(theirs, name), name
    (attention,), *_ = (kind.attention for kind in ours.kinds)
    (original_attention,), *_ = (kind.attention for kind in theirs.kinds)
    assert (ours.layers, ours.hidden, attention.heads) == (LAYERS, HIDDEN, HEADS)
    assert {kind.window for kind in ours.kinds} == {kind.window for kind in theirs.kinds}
    alone = [each.kv_heads == each.heads for each in (attention, original_attention)]
    assert alone[0] == alone[1]
    count = sum(parameter.numel() for parameter in skeleton(tiny_one).parameters())
    assert count == ours.parameters
    for key in ("max_position_embeddings", "rope_parameters"):
        assert tiny_one.get(key) == original.get(key)


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({}, (HIDDEN, 4, 2, 16)),
        ({"num_key_value_heads": 12}, (HIDDEN, 4, 4, 16)),
        ({"num_key_value_heads": 1}, (HIDDEN, 4, 1, 16)),
        ({"head_dim": 128}, (HIDDEN, 4, 2, 32)),
        ({"head_dim": 32}, (2 * HIDDEN, 4, 2, 16)),
    ],
    ids=["grouped", "each its own", "one for all", "wide heads", "narrow heads"],
)
def test_what_hangs_on_ratios_stays(changes: dict[str, int], widths: tuple[int, ...]) -> None:
    found = tiny(large("qwen3", **changes))
    keys = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    assert tuple(found[key] for key in keys) == widths


def test_layers_are_all_there_where_one_of_a_kind_comes_late() -> None:
    late = ["full_attention"] * 10 + ["sliding_attention"] * 2
    mixed = ["sliding_attention", "full_attention"] * 6
    for kinds, layers in ((late, 12), (mixed, LAYERS)):
        found = tiny(large("gemma2", layer_types=kinds))
        assert (found["num_hidden_layers"], found["layer_types"]) == (layers, kinds[:layers])
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 10}
    assert tiny(large("qwen2", **window))["num_hidden_layers"] == 12


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_factors_for_each_frequency_become_as_few_as_the_frequencies(key: str) -> None:
    """Of a head of 16 numbers 12 are rotated, two by two."""
    rule = {"rope_type": "longrope", "short_factor": [1.0] * 24, "long_factor": [2.0] * 24}
    rule |= {"original_max_position_embeddings": 2048}
    rule |= {"rope_theta": 10_000.0} if key == "rope_parameters" else {}
    found = tiny(large("phi3", partial_rotary_factor=0.75, **{key: rule}))
    assert (len(found[key]["short_factor"]), len(found[key]["long_factor"])) == (6, 6)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**found))
    assert model(input_ids=torch.arange(1, 9)[None]).logits.isfinite().all()


def of_type(model_type: str, **keys: Any) -> dict[str, Any]:
    """A tiny version of a type's own defaults, with these changed."""
    known = AutoConfig.for_model(model_type, **keys).to_dict()
    return tiny_values(known, known)


def test_every_kind_of_layer_and_head_becomes_small_by_the_names_of_its_keys() -> None:
    latent = of_type("deepseek_v3")
    dense_first = (latent["num_hidden_layers"], latent["first_k_dense_replace"])
    assert dense_first == (LAYERS, 3)
    assert (latent["n_routed_experts"], latent["num_experts_per_tok"]) == (4, 2)
    parts = latent["qk_nope_head_dim"] + latent["qk_rope_head_dim"]
    assert (parts, latent["kv_lora_rank"]) == (latent["qk_head_dim"], HIDDEN)
    state = of_type("bamba")
    assert state["mamba_n_heads"] * state["mamba_d_head"] == state["mamba_expand"] * HIDDEN
    alone = of_type("mamba2")
    assert alone["num_heads"] * alone["head_dim"] == alone["expand"] * alone["hidden_size"]
    linear = of_type("qwen3_next")
    assert set(linear["layer_types"]) == {"linear_attention", "full_attention"}
    assert linear["linear_num_value_heads"] == 2 * linear["linear_num_key_heads"]


def test_a_text_model_and_its_towers_become_small_together() -> None:
    found = of_type("qwen2_5_vl")
    text, tower = found["text_config"], found["vision_config"]
    assert (text["num_hidden_layers"], text["hidden_size"]) == (LAYERS, HIDDEN)
    assert (tower["depth"], tower["out_hidden_size"]) == (TOWER_LAYERS, HIDDEN)
    assert max(tower["fullatt_block_indexes"]) < TOWER_LAYERS
    assert text["vocab_size"] == AutoConfig.for_model("qwen2_5_vl").text_config.vocab_size
    section = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    found = of_type("qwen2_5_vl", text_config={"rope_parameters": section})
    assert found["text_config"]["rope_parameters"]["mrope_section"] == [2, 3, 3]


def test_short_configs_keep_their_token_ids_in_the_vocabulary() -> None:
    known = AutoConfig.for_model("gemma3").to_dict()
    found = tiny_values(known, known, short=Short(vocab=320, window=16, layers=2))
    ids = [found[key] for key in ("boi_token_index", "eoi_token_index", "image_token_index")]
    assert len(set(ids)) == 3
    assert all(300 < id_ < 320 for id_ in ids)
    text = found["text_config"]
    assert (text["vocab_size"], text["sliding_window"]) == (320, 16)
    assert (len(text["layer_types"]), len(set(text["layer_types"]))) == (6, 2)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A model's folder without its weights."""
    folder = tmp_path / "original"
    tiny_tokenizer().save_pretrained(folder)
    extra = {"dtype": "bfloat16", "auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(large("llama") | extra))
    (folder / "generation_config.json").write_text('{"max_length": 77}')
    (folder / "evil.py").write_text("raise SystemExit")
    return folder


def test_a_tiny_model_is_built_without_the_weights(original: Path, tmp_path: Path) -> None:
    tiny_one = tmp_path / "tiny_one"
    architecture = build_tiny_model(str(original), recipe(), tiny_one)
    assert (architecture.layers, architecture.hidden, architecture.vocab) == (LAYERS, HIDDEN, 400)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tiny_one / name).read_bytes() == (original / name).read_bytes()
    assert json.loads((tiny_one / "generation_config.json").read_text()) == {"max_length": 77}
    assert not (tiny_one / "evil.py").exists()
    assert "auto_map" not in json.loads((tiny_one / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tiny_one, dtype="auto")
    assert model.dtype == torch.bfloat16
    # Whatever it reads, one token is clearly the first: no rounding changes that.
    first, second = model(input_ids=torch.arange(3, 99)[None]).logits[0].topk(2).values.T
    assert (first - second).min() > 2


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ({}, LAYERS),
        ({"rank_pattern": {"down_proj": 8}}, LAYERS),
        ({"layers": [11]}, 12),
        ({"rank_pattern": {r"layers\.11\.mlp\.down_proj": 8}}, 12),
        ({"target_modules": ["q_proj", "model.layers.10.mlp.down_proj"]}, 12),
    ],
)
def test_layers_that_the_recipe_names_are_there(
    method: dict[str, Any], layers: int, original: Path, tmp_path: Path
) -> None:
    assert build_tiny_model(str(original), recipe(**method), tmp_path / "tiny_one").layers == layers
