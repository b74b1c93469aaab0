"""Which modules of a model a method reaches, by the model's own names.

That the recipe's names reach something is proven before a model is loaded (ftcli.vram.adapted).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from ftcli.shapes import shape_from_config

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


def _last_name(name: str) -> str:
    return name.rsplit(".", 1)[-1]
