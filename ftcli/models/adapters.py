"""Trained weights on disk: adapters saved whole, and opened only on a base that they fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftcli.errors import ModelError
from ftcli.models.adapter_config import WEIGHTS, read_adapter_config
from ftcli.models.device import is_out_of_memory
from ftcli.models.methods import train_in_fp32
from ftcli.models.untrusted import opening

# The network that makes a prefix while it is trained; PEFT saves no more than what it makes.
ENCODER = "prefix_encoder.safetensors"


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save a model or its adapter, without asking the hub for the base's vocabulary."""
    if isinstance(model, PeftModel):
        _name_tied_head(model.active_peft_config)
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's own card; the run folder has ours
    else:
        model.save_pretrained(folder)


def _name_tied_head(config: PeftConfig) -> None:
    """PEFT takes the head's name away when it ties the head to the embeddings, and by that name or
    `embed_tokens` it knows that they are tied (0.21, EMBEDDING_LAYER_NAMES)."""
    if getattr(config, "ensure_weight_tying", False):
        config.modules_to_save = sorted({*config.modules_to_save, "lm_head"})


def save_resumable(model: PreTrainedModel, folder: Path) -> None:
    """Save all that a training goes on from: weights, and the network that makes a prefix."""
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
        raise ModelError(
            "adapter_incomplete",
            "the network that made this prefix (method.projection) is not there, and the prefix "
            "alone cannot be trained on",
            file=str(folder),
        )
    encoder.load_state_dict(load_file(file))


def open_adapter(
    model: PreTrainedModel, folder: Path, *, trainable: bool = False
) -> PreTrainedModel:
    """The base with a saved adapter on it; raises ModelError where a weight of it is missing."""
    config = read_adapter_config(folder)
    config.inference_mode = not trainable
    # PEFT warns of a base that has moved; contract.json knows it by its weights.
    config.base_model_name_or_path = model.name_or_path or None
    with opening(str(folder), "adapter", "adapter_incomplete"), _fitting(folder):
        adapted = get_peft_model(model, config)
        train_in_fp32(adapted)
        if (encoder := prefix_encoder(adapted)) is not None:
            load_encoder(encoder, folder)
        else:
            read_adapter(adapted, folder)
    return adapted if trainable else adapted.eval().requires_grad_(False)


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Put one more adapter beside those on the same base, all of them frozen; raises ModelError."""
    config = read_adapter_config(folder)
    config.inference_mode = True
    with opening(str(folder), "adapter", "adapter_incomplete"), _fitting(folder):
        model.add_adapter(name, config)
        train_in_fp32(model)
        read_adapter(model, folder, name)
    model.requires_grad_(False)


def read_adapter(model: PeftModel, folder: Path, name: str = "default") -> None:
    """Fill an adapter with saved weights, each of them and no other; raises ModelError."""
    saved, own = load_file(folder / WEIGHTS), _weights(model, name)
    _require_same(saved, own, folder)
    if model.peft_config[name].is_prompt_learning:
        set_peft_model_state_dict(model, saved, adapter_name=name)
    else:
        # Not by PEFT 0.21, which renames them as the base's own loading rules say, and passes over
        # a name that is then in no module.
        for each, weight in own.items():
            weight.copy_(saved[each])
    own = _weights(model, name)
    lost = [each for each in saved if not _is_held(saved[each], own[each])]
    if lost:
        raise ModelError(
            "adapter_incomplete",
            f"{len(lost)} of {len(saved)} weights are not in the model as they are in "
            f"{WEIGHTS}, {min(lost)} first; this version of peft cannot open it",
            file=str(folder),
        )


def _weights(model: PeftModel, name: str) -> dict[str, Tensor]:
    """An adapter's own weights, by their names in its file; only virtual tokens are copies."""
    weights: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=False
    )
    return weights


def _require_same(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], folder: Path) -> None:
    """Raise ModelError where names or sizes differ."""
    if saved.keys() != own.keys():
        reason = f"holds {len(saved)} weights, and this base takes {len(own)}"
        raise _made_for_another(f"{reason}{_first(saved.keys() ^ own.keys())}", folder)
    other = [each for each in saved if saved[each].shape != own[each].shape]
    if other:
        sizes = f"{list(saved[other[0]].shape)}, and this base takes {list(own[other[0]].shape)}"
        raise _made_for_another(f"its {other[0]} is {sizes}", folder)


def _is_held(saved: Tensor, own: Tensor) -> bool:
    """Bit for bit, in the type that the model holds: a weight may be no number."""
    wanted = saved.to(own.device, own.dtype).contiguous().view(torch.uint8)
    return torch.equal(wanted, own.detach().contiguous().view(torch.uint8))


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Put into words what PEFT raises over other sizes, or where there are none of its modules."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise _made_for_another(str(error), folder) from error


def _first(names: Iterable[str]) -> str:
    return f" ({min(names)} is only on one side)"


def _made_for_another(reason: str, folder: Path) -> ModelError:
    return ModelError(
        "adapter_incomplete", f"it was made for another base: {reason}", file=str(folder)
    )
