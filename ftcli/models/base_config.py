"""What of a model's config.json shapes its outputs, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ftcli.models.base_files import model_folder
from ftcli.models.load import open_config

# Names, versions and types, which another saving changes; tokens, which the contract holds itself;
# what each loading sets anew; and what is given out beside the logits, which training asks for.
FREE = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def outputs_config(source: str, revision: str | None = None) -> dict[str, Any] | None:
    """The config of a local folder, or of a hub model in the local cache, without what is free.

    As transformers reads it: a value that is left out stands there by its default, and older names
    under their newer ones. None: it is not on this machine. Raises ModelError.
    """
    if model_folder(source, revision) is None:
        return None
    text = open_config(source, revision).to_json_string(use_diff=False)
    values = _kept(json.loads(text))
    return {"quantization_config": None, **values}


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """`key: old → new` of what both hold; versions of transformers may hold more or fewer keys."""
    for key in sorted(old.keys() & new.keys()):
        before, after = old[key], new[key]
        if isinstance(before, dict) and isinstance(after, dict):
            yield from (f"{key}.{line}" for line in config_differences(before, after))
        elif before != after:
            yield f"{key}: {_shown(before)} → {_shown(after)}"


def _kept(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _kept(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in FREE
    }


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
