"""Which linear layers a method adapts: those of the decoder that a text's gradient reaches."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel

from ftcli.compat import attention_name
from ftcli.config.recipe import LoraKeys
from ftcli.memory.adapted import adapted_stacks, reached_modules
from ftcli.models.architectures.find import architecture_of_model

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
    device = model.get_input_embeddings().weight.device
    flash = attention_name(model).startswith("flash")  # takes 16 bits only
    with torch.autocast(device.type, torch.bfloat16, enabled=flash):
        ids = torch.arange(1, REACHING_TOKENS, device=device)[None]
        model.eval()(input_ids=ids, use_cache=False).logits.sum().backward()
