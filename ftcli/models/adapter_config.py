"""A saved adapter's description, read as data: methods of ours, and nothing that leads elsewhere.

PEFT follows what an adapter_config.json names: modules to import, caches to open, tokenizers to
fetch. What ftcli writes holds none of it, so whatever is not as ftcli writes it is refused.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig

from ftcli.errors import ModelError
from ftcli.models.bottleneck import BottleneckConfig
from ftcli.models.untrusted import json_object

FILE = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

CONFIGS: dict[str, type[PeftConfig]] = {
    "LORA": LoraConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
    "PROMPT_TUNING": PromptTuningConfig,
    "BOTTLENECK": BottleneckConfig,
}
# Keys whose values ftcli sets; every other one has the default of its class.
OURS = frozenset(
    (
        *("peft_type", "peft_version", "task_type", "inference_mode"),
        *("base_model_name_or_path", "revision"),  # never followed: contract.json knows the base
        *("target_modules", "modules_to_save", "layers_to_transform"),
        *("r", "lora_alpha", "lora_dropout", "rank_pattern", "use_rslora", "use_dora"),
        *("ensure_weight_tying", "bottleneck", "activation"),
        *("num_virtual_tokens", "num_transformer_submodules", "num_layers", "token_dim"),
        *("num_attention_heads", "encoder_hidden_size", "prefix_projection", "init_weights"),
    )
)


def read_adapter_config(folder: Path) -> PeftConfig:
    """The configuration of an adapter that ftcli has saved.

    Raises ModelError, also where its weights are no safetensors.
    """
    _require_safetensors(folder)
    values = json_object(folder / FILE, "adapter_incomplete")
    kind = values.pop("peft_type", None)
    config = CONFIGS.get(kind) if isinstance(kind, str) else None
    if config is None:
        known = ", ".join(CONFIGS)
        raise _refused(folder, f"peft_type is {kind!r}, and ftcli opens {known}")
    defaults = {field.name: _default(field) for field in fields(config)}
    for key, value in values.items():
        if key not in OURS and value not in (None, defaults.get(key)):
            raise _refused(folder, f"{key} is {json.dumps(value)[:60]}, which ftcli never writes")
    if values.get("task_type") != "CAUSAL_LM":
        raise _refused(folder, f"task_type is {values.get('task_type')!r}, and not CAUSAL_LM")
    targets = values.get("target_modules")
    if targets is not None and not _are_names(targets):
        raise _refused(folder, "target_modules is no list of names")
    kept = {key: value for key, value in values.items() if key in OURS and key in defaults}
    try:
        return config(**kept)
    except (TypeError, ValueError) as error:
        raise _refused(folder, str(error)) from error


def _require_safetensors(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if (folder / PICKLE).is_file():
        raise ModelError(
            "adapter_incomplete",
            f"its weights are a pickle ({PICKLE}), which runs code when it is opened, and ftcli "
            f"opens {WEIGHTS} only; convert it where there is nothing to lose (PEFT: "
            "from_pretrained, then save_pretrained)",
            file=str(folder),
        )
    raise ModelError("adapter_incomplete", f"holds no {WEIGHTS}", file=str(folder))


def _default(field: Field[Any]) -> object:
    """As JSON has it: an enumeration by its value."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return getattr(default, "value", default)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _refused(folder: Path, reason: str) -> ModelError:
    return ModelError("adapter_foreign", reason, file=str(folder / FILE))
