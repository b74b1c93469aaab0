"""Adapters on disk: saved completely, and opened only on a base that they fit.

PEFT follows an adapter_config.json: it imports modules, opens caches and fetches tokenizers. Here
the config is data: any key that ftcli does not write is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftcli.errors import ModelError
from ftcli.kernels.expert_stacks import plain_stacks
from ftcli.kernels.experts import use_own_updates
from ftcli.models.bottleneck import BottleneckConfig
from ftcli.models.device import is_out_of_memory
from ftcli.models.files.untrusted import json_object, opening
from ftcli.models.methods import add_adapters, rewritten, targets_as_named, train_in_fp32

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
# The network that computes a prefix during training; PEFT saves only the prefix.
ENCODER = "prefix_encoder.safetensors"

CONFIGS: dict[str, type[PeftConfig]] = {
    "LORA": LoraConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
    "PROMPT_TUNING": PromptTuningConfig,
    "BOTTLENECK": BottleneckConfig,
}
# Of the parameter of a linear layer.
WEIGHT = ".weight"
# Keys that ftcli sets; every other must have the default of its class.
WRITTEN_KEYS = frozenset(
    (
        *("peft_type", "peft_version", "task_type", "inference_mode"),
        *(
            "base_model_name_or_path",
            "revision",
        ),  # never followed: prompt_manifest.json knows the base
        *("target_modules", "target_parameters", "modules_to_save", "layers_to_transform"),
        *("r", "lora_alpha", "lora_dropout", "rank_pattern", "use_rslora", "use_dora"),
        *("ensure_weight_tying", "bottleneck", "activation"),
        *("num_virtual_tokens", "num_transformer_submodules", "num_layers", "token_dim"),
        *("num_attention_heads", "encoder_hidden_size", "prefix_projection", "init_weights"),
    )
)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save a model or its adapter, without asking the hub for the base's vocabulary size."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)
        return
    config = model.active_peft_config
    if getattr(config, "ensure_weight_tying", False):
        # PEFT 0.21 removes the head's name when it ties the head to the embeddings, but needs that
        # name or `embed_tokens` to recognise tied ends (EMBEDDING_LAYER_NAMES).
        config.modules_to_save = sorted({*config.modules_to_save, "lm_head"})
    model.create_or_update_model_card = lambda _: None  # the run folder has ours
    with _as_peft_reads_it(model, config):
        model.save_pretrained(folder, save_embedding_layers=False)


@contextmanager
def _as_peft_reads_it(model: PeftModel, config: PeftConfig) -> Iterator[None]:
    """Within the block, the config has modules whose names PEFT would rewrite by their weights,
    which plain PEFT adapts as they are named."""
    base = model.get_base_model()
    names = rewritten(base, config.target_modules or ()) if isinstance(config, LoraConfig) else ()
    if not names:
        yield
        return
    before = dict(vars(config))
    config.target_modules = {*config.target_modules} - names
    config.target_parameters = {
        *(config.target_parameters or ()),
        *(name + WEIGHT for name in names),
    }
    by_weight = {rf"({key})\{WEIGHT}": rank for key, rank in config.rank_pattern.items()}
    config.rank_pattern = config.rank_pattern | by_weight
    try:
        yield
    finally:
        vars(config).update(before)


def _as_named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a saved config with the weights of linear layers as modules again."""
    parameters: list[str] = values.get("target_parameters") or []
    modules = [name.removesuffix(WEIGHT) for name in parameters if name.endswith(WEIGHT)]
    if not modules:
        return dict(values)
    ranks = values.get("rank_pattern") or {}
    return {
        **values,
        "target_modules": [*(values.get("target_modules") or ()), *modules],
        "target_parameters": [each for each in parameters if not each.endswith(WEIGHT)] or None,
        "rank_pattern": {key: ranks[key] for key in ranks if not key.endswith(WEIGHT)},
    }


def save_resumable(model: PreTrainedModel, folder: Path) -> None:
    """Save what a training resumes from: weights by the names of their modules, and the network
    that computes a prefix."""
    if not isinstance(model, PeftModel):
        # Else transformers writes the names of the base's files, in which experts are apart.
        model.save_pretrained(folder, save_original_format=False)
        return
    save_weights(model, folder)
    if (encoder := prefix_encoder(model)) is not None:
        save_file(dict(encoder.state_dict()), folder / ENCODER, metadata={"format": "pt"})


def prefix_encoder(model: PreTrainedModel) -> nn.Module | None:
    """The network that computes the prefix, if one is trained."""
    if not isinstance(model, PeftModel):
        return None
    encoders = getattr(model, "prompt_encoder", {})
    encoder = encoders[model.active_adapter] if encoders else None
    return encoder if encoder is not None and hasattr(encoder, "transform") else None


def load_encoder(encoder: nn.Module, folder: Path) -> None:
    """Load the network that computes a prefix; raises ModelError if the folder has none."""
    file = folder / ENCODER
    if not file.is_file():
        raise _incomplete(
            "the network of this prefix (method.projection) is missing, and the prefix alone "
            "cannot be trained further",
            folder,
        )
    encoder.load_state_dict(load_file(file))


def open_adapter(
    model: PreTrainedModel, folder: Path, *, trainable: bool = False
) -> PreTrainedModel:
    """The base with a saved adapter; raises ModelError if a weight of it is missing."""
    config = read_adapter_config(folder)
    config.inference_mode = not trainable
    # PEFT warns of a moved base; prompt_manifest.json identifies it by its weights.
    config.base_model_name_or_path = model.name_or_path or None
    with _opening_adapter(folder):
        adapted = add_adapters(model, config)
        train_in_fp32(adapted)
        if (encoder := prefix_encoder(adapted)) is not None:
            load_encoder(encoder, folder)
        else:
            read_adapter(adapted, folder)
    return adapted if trainable else adapted.eval().requires_grad_(False)


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Add another adapter to the same base, all frozen; raises ModelError."""
    config = read_adapter_config(folder)
    config.inference_mode = True
    with _opening_adapter(folder):
        with targets_as_named(), plain_stacks(model.get_base_model()):
            model.add_adapter(name, config)
        use_own_updates(model)
        train_in_fp32(model)
        read_adapter(model, folder, name)
    model.requires_grad_(False)


@contextmanager
def _opening_adapter(folder: Path) -> Iterator[None]:
    """Raise ModelError for any error of a library, such as PEFT's about sizes and modules."""
    with opening(str(folder), "adapter", "adapter_incomplete"):
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise _other_base(str(error), folder) from error


def read_adapter(model: PeftModel, folder: Path, name: str = "default") -> None:
    """Load saved weights into an adapter, all of them and no others; raises ModelError."""
    saved, own = load_file(folder / WEIGHTS), _weights(model, name)
    if saved.keys() != own.keys():
        first = min(saved.keys() ^ own.keys())
        raise _other_base(
            f"has {len(saved)} weights, and this base takes {len(own)} ({first} is in only one of "
            "them)",
            folder,
        )
    for each, weight in saved.items():
        if weight.shape != own[each].shape:
            sizes = f"{list(weight.shape)}, and this base takes {list(own[each].shape)}"
            raise _other_base(f"its {each} is {sizes}", folder)
    if model.peft_config[name].is_prompt_learning:
        set_peft_model_state_dict(model, saved, adapter_name=name)
    else:
        # Not with PEFT 0.21, which renames them by the base's loading rules, and skips names
        # that then match no module.
        for each, weight in own.items():
            weight.copy_(saved[each])
    own = _weights(model, name)
    lost = [each for each in saved if not _is_equal(saved[each], own[each])]
    if lost:
        raise _incomplete(
            f"{len(lost)} of {len(saved)} weights differ in the model from {WEIGHTS}, {min(lost)} "
            "first; this version of peft cannot open it",
            folder,
        )


def _weights(model: PeftModel, name: str) -> dict[str, Tensor]:
    """An adapter's weights by their names in its file; only virtual tokens are copies."""
    weights: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=False
    )
    return weights


def _is_equal(saved: Tensor, own: Tensor) -> bool:
    """Whether they are equal bit for bit, in the model's type; a weight may be NaN."""
    wanted = saved.to(own.device, own.dtype).contiguous().view(torch.uint8)
    return torch.equal(wanted, own.detach().contiguous().view(torch.uint8))


def read_adapter_config(folder: Path) -> PeftConfig:
    """The configuration of an adapter saved by ftcli.

    Raises ModelError, also if its weights are not safetensors.
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
        raise _foreign(f"task_type is {values.get('task_type')!r}, not CAUSAL_LM", folder)
    for key in ("target_modules", "target_parameters"):
        targets = values.get(key)
        are_names = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
        if targets is not None and not are_names:
            raise _foreign(f"{key} is not a list of names", folder)
    kept = {key: value for key, value in values.items() if key in WRITTEN_KEYS and key in defaults}
    try:
        return config(**_as_named(kept))
    except (TypeError, ValueError) as error:
        raise _foreign(str(error), folder) from error


def _require_safetensors(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if not (folder / PICKLE).is_file():
        raise _incomplete(f"has no {WEIGHTS}", folder)
    raise _incomplete(
        f"its weights are a pickle ({PICKLE}), which runs code when opened, and ftcli opens only "
        f"{WEIGHTS}; convert it in a sandbox (PEFT: from_pretrained, then "
        "save_pretrained)",
        folder,
    )


def _default(field: Field[Any]) -> object:
    """A default as in JSON: an enumeration by its value."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return getattr(default, "value", default)


def _foreign(reason: str, folder: Path) -> ModelError:
    return ModelError("adapter_foreign", reason, file=str(folder / CONFIG))


def _incomplete(reason: str, folder: Path) -> ModelError:
    return ModelError("adapter_incomplete", reason, file=str(folder))


def _other_base(reason: str, folder: Path) -> ModelError:
    return _incomplete(f"it was trained on another base: {reason}", folder)
