"""Which modules of a model a method reaches, by the model's own names.

That the recipe's names reach something is proven before a model is loaded (ftcli.memory.adapted).
"""

from __future__ import annotations

from collections.abc import Sequence

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from ftcli.memory.shapes import shape_from_config

ENDS = ("embed_tokens", "lm_head")
"""What recipes call the two ends of a model."""


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last names of all linear layers but the head: PEFT picks layers only among names."""
    head = model.get_output_embeddings()
    return sorted(
        {
            _last_name(name)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
    )


def adapter_targets(model: PreTrainedModel, placement: str) -> list[str]:
    """Names of the projections that end the attention and the MLP of each layer."""
    layout = shape_from_config(model.config.to_dict(), name=model.config.model_type).layout
    ends = {"attention": [layout.output], "mlp": [layout.down]}
    return ends.get(placement, [layout.output, layout.down])


def names_of_ends(model: PreTrainedModel, ends: Sequence[str]) -> list[str]:
    """What the model calls `embed_tokens` and `lm_head`: GPT-NeoX's embeddings are `embed_in`,
    Falcon's `word_embeddings`, and PEFT passes over a name that matches nothing."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {module: _last_name(name) for name, module in model.named_modules()}
    return [names[module] for end, module in zip(ENDS, modules, strict=True) if end in ends]


def shared_weight(adapted: nn.Module) -> str | None:
    """Which modules hold the weight of a layer that LoRA adapts, in words, where it is not that
    layer's alone: merged, the layer's update would be in all of them. None where there are none."""
    holders: dict[int, list[str]] = {}
    for name, module in adapted.named_modules(remove_duplicate=False):
        if (weight := dict(module.named_parameters(recurse=False)).get("weight")) is not None:
            holders.setdefault(id(weight), []).append(_base_name(name))
    layers = (module for module in adapted.modules() if isinstance(module, LoraLayer))
    found = (holders[id(layer.get_base_layer().weight)] for layer in layers)
    names = next((each for each in found if len(each) > 1), None)
    return None if names is None else f"{' and '.join(names)} hold one weight"


def _base_name(name: str) -> str:
    """A module's name in the base, below what PEFT puts around it."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def _last_name(name: str) -> str:
    return name.rsplit(".", 1)[-1]
