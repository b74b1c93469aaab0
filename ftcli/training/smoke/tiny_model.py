"""A tiny random model of the same architecture, with the same tokenizer and module names.

Names, layer types, token ids and context are the original's. Widths are small, and layers are few
unless the recipe names some by number, so that a training takes seconds.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ftcli.config.recipe import LoraKeys, Method, Recipe
from ftcli.errors import ModelError
from ftcli.memory.shapes import Shape, shape_from_config
from ftcli.models.base_files import model_folder
from ftcli.models.load import model_class, open_config
from ftcli.runs.atomic import write_json

CONFIG = "config.json"

# At least an NF4 block of 64 weights (bitsandbytes 0.50, functional.py).
HIDDEN = 64
# Layer types repeat, at the latest after six layers (Gemma 3).
LAYERS = 8
HEADS = 4
INNER = 128
# Length of the vector added to all embeddings, which are 0.16 long (0.02 × √64).
PREFERENCE = 2.0
EXPERTS, ACTIVE_EXPERTS = 4, 2

# Files of a tokenizer and of generation (transformers 5.24).
TOKENIZER_FILES = (
    "tokenizer*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
)
# Not copied from config.json: the tiny model is not quantised, and has no code.
LEFT_OUT = ("quantization_config", "auto_map")


def build_tiny_model(source: str, recipe: Recipe, folder: Path) -> Shape:
    """Write a tiny version of the recipe's model into `folder`, in the type of its files.

    Needs only config.json and the tokenizer's files of the original. Raises ModelError.
    """
    revision = recipe.model.revision
    original = open_config(source, revision)
    there = model_folder(source, revision)
    if there is None:  # its config.json was read just now
        raise ModelError("model", f"{source}: its files are not kept on this machine")
    values = json.loads((there / CONFIG).read_text(encoding="utf-8"))
    values = tiny_config(values, original, all_layers=_names_layers(recipe.method))
    config = type(original).from_dict(dict(values))
    torch.manual_seed(recipe.training.seed)
    model = model_class(config).from_config(config, dtype=original.dtype or torch.float32)
    _prefer_one_token(model)
    model.save_pretrained(folder)
    # With the original's keys: transformers renames some.
    write_json(folder / CONFIG, values)
    _copy_tokenizer(there, folder)
    return shape_from_config(values, name=source)


def _prefer_one_token(model: PreTrainedModel) -> None:
    """Add one vector to all embeddings and to one token's row of the head.

    A random model's logits are nearly equal, so that the rounding of a merge would change the first
    token, which it does not in a trained model.
    """
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    direction = torch.randn(inputs.shape[1])
    direction *= PREFERENCE / direction.norm()
    with torch.no_grad():
        inputs += direction.to(inputs.dtype)
        outputs[len(outputs) // 2] += direction.to(outputs.dtype)


def _names_layers(method: Method) -> bool:
    """Whether the method names layers by number."""
    if not isinstance(method, LoraKeys):
        return False
    targets = [] if isinstance(method.target_modules, str) else method.target_modules
    # `fc1` matches too, which only takes more time.
    numbered = any(re.search(r"\d", name) for name in (*targets, *method.rank_pattern))
    return numbered or method.layers is not None


def tiny_config(
    values: Mapping[str, Any], original: PreTrainedConfig, *, all_layers: bool
) -> dict[str, Any]:
    """A config.json with small widths, and few layers unless `all_layers`.

    `original` is transformers' config of `values`. Raises ModelError for unknown types.
    """
    shape = shape_from_config(values, name=original.model_type)
    sizes, known = _sizes(shape), original.to_dict()
    # Not keys that this type lacks or computes.
    wanted = {key: n for key, n in sizes.items() if values.get(key, known.get(key)) is not None}
    kept = {key: value for key, value in values.items() if key not in LEFT_OUT}
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := values.get(key), Mapping):
            share = values.get("partial_rotary_factor", 1.0)
            kept[key] = _tiny_rope(rope, sizes["head_dim"], share)
    if not all_layers and shape.layers > LAYERS and _repeats(known, shape.layers):
        lists = {k: v[:LAYERS] for k, v in values.items() if _is_by_layer(v, shape.layers)}
        wanted |= {"num_hidden_layers": LAYERS, **lists}
    return {**kept, **wanted}


def _is_by_layer(value: object, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers


def _repeats(known: Mapping[str, Any], layers: int) -> bool:
    """Whether the first LAYERS layers include every layer type."""
    by_layer = [value for value in known.values() if _is_by_layer(value, layers)]
    return all(set(value[:LAYERS]) == set(value) for value in by_layer)


def _sizes(shape: Shape) -> dict[str, int]:
    """Small widths that keep the original's ratios: grouped heads, heads that are together wider or
    narrower than the hidden states, several experts."""
    heads_are_narrow = shape.query_width < shape.hidden
    heads_are_wide = shape.query_width > shape.hidden
    grouped = 1 if shape.kv_heads == 1 else HEADS // 2
    kv_heads = HEADS if shape.kv_heads == shape.heads else grouped
    experts = min(shape.experts, EXPERTS)
    return {
        "hidden_size": 2 * HIDDEN if heads_are_narrow else HIDDEN,
        "num_attention_heads": HEADS,
        "head_dim": HIDDEN // HEADS * (2 if heads_are_wide else 1),
        "num_key_value_heads": kv_heads,
        "num_kv_heads": kv_heads,
        "intermediate_size": INNER,
        "ffn_hidden_size": INNER,
        "moe_intermediate_size": INNER,
        "num_local_experts": experts,
        "num_experts": experts,
        "num_experts_per_tok": min(shape.active_experts, ACTIVE_EXPERTS),
    }


def _tiny_rope(values: Mapping[str, Any], head_dim: int, share: float) -> dict[str, Any]:
    """The same RoPE parameters; lists with one factor per frequency are shortened.

    `share` is the default of partial_rotary_factor.
    """
    rotated = int(head_dim * values.get("partial_rotary_factor", share))

    def tiny(value: Any) -> Any:
        if isinstance(value, Mapping):  # parameters per layer type (Gemma 3)
            return _tiny_rope(value, head_dim, share)
        return value[: math.ceil(rotated / 2)] if isinstance(value, list) else value

    return {key: tiny(value) for key, value in values.items()}


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in TOKENIZER_FILES:
        for file in filter(Path.is_file, source.glob(pattern)):
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
