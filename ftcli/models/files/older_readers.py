"""Make saved folders readable for software that expects transformers 4's format.

transformers 5 writes rotary positions, the dtype and the tokenizer's class under new names. Readers
of the older names silently take a default: transformers 4.57, and converters that read config.json
themselves, take a rotary base of 10,000.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftcli.runs.atomic import write_json

Keys = dict[str, Any]

# transformers 4.57, modeling_rope_utils.py; `default` scales nothing.
OLDER_ROTATIONS = ("linear", "dynamic", "yarn", "longrope", "llama3")


def write_for_older_readers(folder: Path) -> None:
    """Add the older names to config.json and tokenizer_config.json, if the folder has them."""
    for name, older in (("config.json", _model_keys), ("tokenizer_config.json", _tokenizer_keys)):
        file = folder / name
        if file.is_file():
            write_json(file, older(json.loads(file.read_text(encoding="utf-8"))))


def set_type(folder: Path, dtype: str) -> None:
    """Name the type of the text's weights, in which all are loaded: transformers 5.24 saves that of
    the first weight, a tower's."""
    file = folder / "config.json"
    config: Keys = json.loads(file.read_text(encoding="utf-8"))
    inner = [value for value in config.values() if isinstance(value, dict) and "dtype" in value]
    for part in (config, *inner):
        part["dtype"] = dtype
    write_json(file, config)


def _model_keys(config: Keys) -> Keys:
    """A config, and those in it: of the text of a model with towers, and of the towers."""
    names = {"dtype": "torch_dtype", "num_local_experts": "num_experts"}
    renamed = {older: config[name] for name, older in names.items() if name in config}
    inner = {
        key: _model_keys(value)
        for key, value in config.items()
        if isinstance(value, dict) and "model_type" in value
    }
    return config | inner | renamed | _rotary_keys(config)


def _rotary_keys(config: Keys) -> Keys:
    """`rope_parameters` (possibly by kind of layer) under the names of transformers 4.57."""
    rotary: Keys = config.get("rope_parameters") or {}
    whole: Keys = rotary.get("full_attention") or rotary
    if "rope_theta" not in whole:
        return {}
    found = {"rope_theta": whole["rope_theta"]}
    if "rope_theta" in (local := rotary.get("sliding_attention") or {}):
        found["rope_local_base_freq"] = local["rope_theta"]
    if (ratio := whole.get("partial_rotary_factor")) is not None:
        found["partial_rotary_factor"] = ratio
    model_type = config.get("model_type", "")
    if model_type == "gpt_neox":
        found |= {"rotary_emb_base": whole["rope_theta"], "rotary_pct": ratio}
    return found | _scaling_keys(whole, model_type)


def _scaling_keys(rotary: Mapping[str, Any], model_type: str) -> Keys:
    kind = rotary.get("rope_type", "default")
    if kind not in OLDER_ROTATIONS:
        return {}
    if model_type == "phi3":  # its config takes these three keys and no other
        return {
            "rope_scaling": {
                "type": kind,
                **{name: rotary[name] for name in ("short_factor", "long_factor")},
            },
            "original_max_position_embeddings": rotary["original_max_position_embeddings"],
        }
    own = ("rope_theta", "partial_rotary_factor")  # separate keys, above
    return {"rope_scaling": {key: value for key, value in rotary.items() if key not in own}}


def _tokenizer_keys(config: Keys) -> Keys:
    """Use tokenizer.json as it is: other classes of transformers 4 may add tokens."""
    if config.get("backend") == "tokenizers":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        # That class would return token_type_ids, which no causal model takes.
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
