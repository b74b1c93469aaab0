"""Adapters on disk: saved whole, and opened only on a base that they fit.

PEFT follows what an adapter_config.json names: modules to import, caches to open, tokenizers to
fetch. A config is read as data here: any key that ftcli does not write is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftcli.errors import ModelError
from ftcli.models.bottleneck import BottleneckConfig
from ftcli.models.device import is_out_of_memory
from ftcli.models.methods import train_in_fp32
from ftcli.models.untrusted import json_object, opening

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
# The network that makes a prefix during training; PEFT saves no more than what it makes.
ENCODER = "prefix_encoder.safetensors"

CONFIGS: dict[str, type[PeftConfig]] = {
    "LORA": LoraConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
    "PROMPT_TUNING": PromptTuningConfig,
    "BOTTLENECK": BottleneckConfig,
}
# Keys whose values ftcli sets; every other one has the default of its class.
WRITTEN_KEYS = frozenset(
    (
        *("peft_type", "peft_version", "task_type", "inference_mode"),
        *(
            "base_model_name_or_path",
            "revision",
        ),  # never followed: prompt_manifest.json knows the base
        *("target_modules", "modules_to_save", "layers_to_transform"),
        *("r", "lora_alpha", "lora_dropout", "rank_pattern", "use_rslora", "use_dora"),
        *("ensure_weight_tying", "bottleneck", "activation"),
        *("num_virtual_tokens", "num_transformer_submodules", "num_layers", "token_dim"),
        *("num_attention_heads", "encoder_hidden_size", "prefix_projection", "init_weights"),
    )
)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save a model or its adapter, without asking the hub for the base's vocabulary."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)
        return
    config = model.active_peft_config
    if getattr(config, "ensure_weight_tying", False):
        # PEFT 0.21 removes the head's name when it ties the head to the embeddings, and recognises
        # tied ends by that name or `embed_tokens` (EMBEDDING_LAYER_NAMES).
        config.modules_to_save = sorted({*config.modules_to_save, "lm_head"})
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own card; the run folder has ours


def save_resumable(model: PreTrainedModel, folder: Path) -> None:
    """Save all that a training resumes from: weights, and the network that makes a prefix."""
    save_weights(model, folder)
    if (encoder := prefix_encoder(model)) is not None:
        save_file(dict(encoder.state_dict()), folder / ENCODER, metadata={"format": "pt"})


def prefix_encoder(model: PreTrainedModel) -> nn.Module | None:
    """The network that makes the prefix, where one is trained."""
    if not isinstance(model, PeftModel):
        return None
    encoders = getattr(model, "prompt_encoder", {})
    encoder = encoders[model.active_adapter] if encoders else None
    return encoder if encoder is not None and hasattr(encoder, "transform") else None


def load_encoder(encoder: nn.Module, folder: Path) -> None:
    """Read the network that makes a prefix; raises ModelError where the folder has none."""
    file = folder / ENCODER
    if not file.is_file():
        raise _incomplete(
            "the network that made this prefix (method.projection) is not there, and the prefix "
            "alone cannot be trained on",
            folder,
        )
    encoder.load_state_dict(load_file(file))


def open_adapter(
    model: PreTrainedModel, folder: Path, *, trainable: bool = False
) -> PreTrainedModel:
    """The base with a saved adapter on it; raises ModelError where a weight of it is missing."""
    config = read_adapter_config(folder)
    config.inference_mode = not trainable
    # PEFT warns of a base that has moved; prompt_manifest.json knows it by its weights.
    config.base_model_name_or_path = model.name_or_path or None
    with _opening_adapter(folder):
        adapted = get_peft_model(model, config)
        train_in_fp32(adapted)
        if (encoder := prefix_encoder(adapted)) is not None:
            load_encoder(encoder, folder)
        else:
            read_adapter(adapted, folder)
    return adapted if trainable else adapted.eval().requires_grad_(False)


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Add one more adapter to the same base, all of them frozen; raises ModelError."""
    config = read_adapter_config(folder)
    config.inference_mode = True
    with _opening_adapter(folder):
        model.add_adapter(name, config)
        train_in_fp32(model)
        read_adapter(model, folder, name)
    model.requires_grad_(False)


@contextmanager
def _opening_adapter(folder: Path) -> Iterator[None]:
    """Put into words what a library raises; PEFT over other sizes, or none of its modules."""
    with opening(str(folder), "adapter", "adapter_incomplete"):
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise _made_for_another(str(error), folder) from error


def read_adapter(model: PeftModel, folder: Path, name: str = "default") -> None:
    """Fill an adapter with saved weights, each of them and no other; raises ModelError."""
    saved, own = load_file(folder / WEIGHTS), _weights(model, name)
    if saved.keys() != own.keys():
        first = min(saved.keys() ^ own.keys())
        raise _made_for_another(
            f"holds {len(saved)} weights, and this base takes {len(own)} ({first} is only on one "
            "side)",
            folder,
        )
    for each, weight in saved.items():
        if weight.shape != own[each].shape:
            sizes = f"{list(weight.shape)}, and this base takes {list(own[each].shape)}"
            raise _made_for_another(f"its {each} is {sizes}", folder)
    if model.peft_config[name].is_prompt_learning:
        set_peft_model_state_dict(model, saved, adapter_name=name)
    else:
        # Not by PEFT 0.21, which renames them by the base's own loading rules, and skips a name
        # that is then in no module.
        for each, weight in own.items():
            weight.copy_(saved[each])
    own = _weights(model, name)
    lost = [each for each in saved if not _is_equal(saved[each], own[each])]
    if lost:
        raise _incomplete(
            f"{len(lost)} of {len(saved)} weights are not in the model as they are in "
            f"{WEIGHTS}, {min(lost)} first; this version of peft cannot open it",
            folder,
        )


def _weights(model: PeftModel, name: str) -> dict[str, Tensor]:
    """An adapter's own weights, by their names in its file; only virtual tokens are copies."""
    weights: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=False
    )
    return weights


def _is_equal(saved: Tensor, own: Tensor) -> bool:
    """Bit for bit, in the model's type: a weight may be NaN."""
    wanted = saved.to(own.device, own.dtype).contiguous().view(torch.uint8)
    return torch.equal(wanted, own.detach().contiguous().view(torch.uint8))


def read_adapter_config(folder: Path) -> PeftConfig:
    """The configuration of an adapter that ftcli has saved.

    Raises ModelError, also where its weights are not safetensors.
    """
    _require_safetensors(folder)
    values = json_object(folder / CONFIG, "adapter_incomplete")
    kind = values.pop("peft_type", None)
    config = CONFIGS.get(kind) if isinstance(kind, str) else None
    if config is None:
        known = ", ".join(CONFIGS)
        raise _foreign(f"peft_type is {kind!r}, and ftcli opens {known}", folder)
    defaults = {field.name: _default(field) for field in fields(config)}
    for key, value in values.items():
        if key not in WRITTEN_KEYS and value not in (None, defaults.get(key)):
            raise _foreign(f"{key} is {json.dumps(value)[:60]}, which ftcli never writes", folder)
    if values.get("task_type") != "CAUSAL_LM":
        raise _foreign(f"task_type is {values.get('task_type')!r}, and not CAUSAL_LM", folder)
    targets = values.get("target_modules")
    are_names = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    if targets is not None and not are_names:
        raise _foreign("target_modules is no list of names", folder)
    kept = {key: value for key, value in values.items() if key in WRITTEN_KEYS and key in defaults}
    try:
        return config(**kept)
    except (TypeError, ValueError) as error:
        raise _foreign(str(error), folder) from error


def _require_safetensors(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if not (folder / PICKLE).is_file():
        raise _incomplete(f"holds no {WEIGHTS}", folder)
    raise _incomplete(
        f"its weights are a pickle ({PICKLE}), which runs code when it is opened, and ftcli opens "
        f"{WEIGHTS} only; convert it where there is nothing to lose (PEFT: from_pretrained, then "
        "save_pretrained)",
        folder,
    )


def _default(field: Field[Any]) -> object:
    """As JSON has it: an enumeration by its value."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return getattr(default, "value", default)


def _foreign(reason: str, folder: Path) -> ModelError:
    return ModelError("adapter_foreign", reason, file=str(folder / CONFIG))


def _incomplete(reason: str, folder: Path) -> ModelError:
    return ModelError("adapter_incomplete", reason, file=str(folder))


def _made_for_another(reason: str, folder: Path) -> ModelError:
    return _incomplete(f"it was made for another base: {reason}", folder)
