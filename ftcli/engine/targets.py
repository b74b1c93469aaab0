"""Which layers of a model a method reaches, and what is wrong with names that reach none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ftcli.errors import ModelError, did_you_mean
from ftcli.shapes import shape_from_config

HEADS = ("lm_head", "embed_out")


def require_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """PEFT drops a name that matches nothing as long as another one matches."""
    linear = _linear_layers(model)
    wrong = [target for target in targets if not any(_named(name, target) for name in linear)]
    if wrong:
        raise _no_layer("target_modules", wrong, linear)
    if chosen := _heads(linear) & set(targets):
        raise ModelError(
            "target_modules",
            f"method.target_modules: {chosen.pop()} cannot take an adapter: the loss is computed "
            "from its weight directly",
        )


def require_layers(model: PreTrainedModel, layers: Sequence[int] | None) -> None:
    """PEFT passes over a layer that is not there."""
    there = model.config.get_text_config().num_hidden_layers
    beyond = [str(layer) for layer in layers or () if layer >= there]
    if beyond:
        raise ModelError(
            "target_modules",
            f"method.layers: the model has no layer {', '.join(beyond)}: they are 0 to {there - 1}",
        )


def require_ranks(
    model: PreTrainedModel, targets: str | Sequence[str], ranks: Mapping[str, int]
) -> None:
    """A rank for a module that gets no adapter would be passed over."""
    linear = _linear_layers(model)
    if not isinstance(targets, str):
        linear = {name for name in linear if any(_named(name, target) for target in targets)}
    # As PEFT looks it up (utils/other.py, get_pattern_key): the end of a name, as a pattern.
    wrong = [key for key in ranks if not any(re.match(rf"(.*\.)?({key})$", n) for n in linear)]
    if wrong:
        raise _no_layer("rank_pattern", wrong, linear)


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last names of all linear layers but the head: PEFT picks layers only among names."""
    return _last_names(_linear_layers(model))


def adapter_targets(model: PreTrainedModel, placement: str) -> list[str]:
    """Names of the projections that end the attention and the MLP of each layer."""
    layout = shape_from_config(model.config.to_dict(), name=model.config.model_type).layout
    ends = {"attention": [layout.output], "mlp": [layout.down]}
    names = ends.get(placement, [layout.output, layout.down])
    require_targets(model, names)
    return names


def _linear_layers(model: PreTrainedModel) -> set[str]:
    kinds = (nn.Linear, Conv1D)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _last_names(linear: Iterable[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in linear} - set(HEADS))


def _heads(linear: Iterable[str]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in linear} & set(HEADS)


def _no_layer(key: str, wrong: Sequence[str], linear: Iterable[str]) -> ModelError:
    known = _last_names(linear)
    names = ", ".join(f"{target}{did_you_mean(target, known)}" for target in wrong)
    return ModelError(
        "target_modules",
        f"method.{key}: no linear layer is called {names} (there is {', '.join(known)})",
    )
