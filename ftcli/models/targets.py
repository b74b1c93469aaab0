"""Which modules a method adapts: those of the decoder that a text's gradient reaches."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel

from ftcli.compat import attention_name
from ftcli.config.recipe import LoraKeys
from ftcli.memory.adapted import adapted_stacks, reached_modules
from ftcli.memory.choices import Placement
from ftcli.memory.trained import block_ends
from ftcli.models.architectures.find import architecture_of_model
from ftcli.models.device import input_device

ENDS = ("embed_tokens", "lm_head")
"""Recipe names of input embeddings and head."""

# Tokens whose gradient shows what a text reaches.
REACHING_TOKENS = 32


def target_names(model: PreTrainedModel, method: LoraKeys) -> list[str]:
    """Full names of the linear layers that the method adapts; raises ModelError for a name that
    reaches none."""
    named, layers = method.target_modules, method.layers
    targets = named if isinstance(named, str) else tuple(named)
    chosen = None if layers is None else tuple(layers)
    return [name for *_, name in reached_modules(architecture_of_model(model), targets, chosen)]


def expert_names(model: PreTrainedModel, method: LoraKeys) -> list[str]:
    """Full names of the stacks of experts that the method adapts; raises ModelError."""
    if not method.experts:
        return []
    layers = None if method.layers is None else tuple(method.layers)
    return [name for *_, name in adapted_stacks(architecture_of_model(model), layers)]


def shortened(model: nn.Module, names: Collection[str]) -> list[str]:
    """Last names of modules whose last name no other module has; full names of the rest.

    With last names an adapter fits only a base with as many layers.
    """
    known = {*names}
    others = {last_name(name) for name, _ in model.named_modules() if name not in known}
    return sorted({name if last_name(name) in others else last_name(name) for name in names})


def linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers that run on text and pass a gradient on, layer by layer."""
    return [name for name, _ in architecture_of_model(model).linear_names()]


def last_name(name: str) -> str:
    """A module's own name."""
    return name.rsplit(".", 1)[-1]


def kind_of(name: str) -> str:
    """A name without its numbers: an expert or a layer counts as the others of its kind."""
    return re.sub(r"\d+", "", name)


def run_text(model: PreTrainedModel) -> None:
    """Forward and backward of a short text."""
    device = input_device(model)
    flash = attention_name(model).startswith("flash")  # takes 16 bits only
    with torch.autocast(device.type, torch.bfloat16, enabled=flash):
        ids = torch.arange(1, REACHING_TOKENS, device=device)[None]
        model.eval()(input_ids=ids, use_cache=False).logits.sum().backward()


def adapter_targets(model: PreTrainedModel, placement: Placement) -> list[str]:
    """Names of the last projections of attention and MLP of all layers, in full where a module
    outside of them has the same."""
    architecture = architecture_of_model(model)
    return shortened(
        model,
        [
            f"{architecture.stack}.{layer}.{each.name}"
            for layer in range(architecture.layers)
            for each in block_ends(architecture.kind_of(layer), placement)
        ],
    )


def names_of_ends(model: PreTrainedModel, ends: Sequence[str]) -> list[str]:
    """The model's names for `embed_tokens` and `lm_head`: GPT-NeoX's embeddings are `embed_in`,
    Falcon's `word_embeddings`, and PEFT ignores a name that matches nothing."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {module: last_name(name) for name, module in model.named_modules()}
    return [names[module] for end, module in zip(ENDS, modules, strict=True) if end in ends]


def shared_weight(adapted: nn.Module) -> str | None:
    """A message naming modules that share the weight of a LoRA layer, because a merge would update
    all of them; None if there are none."""
    holders: dict[int, list[str]] = {}
    for name, module in adapted.named_modules(remove_duplicate=False):
        for weight in module.parameters(recurse=False):
            holders.setdefault(id(weight), []).append(_base_name(name))
    layers = (module for module in adapted.modules() if isinstance(module, LoraLayer))
    found = (holders[id(stored_weight(layer))] for layer in layers)
    names = next((each for each in found if len(each) > 1), None)
    return None if names is None else f"{' and '.join(names)} share one weight"


def stored_weight(layer: Any) -> Tensor:
    """The base's weight under an adapter, as it is stored: a stack may be in 4 bits."""
    base, name = layer.get_base_layer(), getattr(layer, "parameter_name", "weight")
    stored = base.parametrizations[name].original if is_parametrized(base) else getattr(base, name)
    weight: Tensor = stored
    return weight


def _base_name(name: str) -> str:
    """A module's name in the base, without PEFT's wrappers."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")
