"""The class of transformers that a config.json makes, and what it lacks to run on text."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ftcli.errors import ModelError
from ftcli.models.files.untrusted import opening, refuse_foreign_config

# Classes with towers first: AutoModelForCausalLM opens some of their checkpoints as the text alone,
# and a merge would write a model without its towers.
CLASSES: tuple[tuple[type, Mapping[type, type]], ...] = (
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
)


def open_config(source: str, revision: str | None) -> PreTrainedConfig:
    """The base's config.json; raises ModelError. Runs no code of the repository."""
    refuse_foreign_config(source, revision)
    with opening(source, "config.json"):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def model_class(config: PreTrainedConfig) -> Any:
    """The Auto class that opens the class of model that a checkpoint names, towers included.

    A checkpoint that names none gets the first of CLASSES that takes its config. Raises ModelError
    for a config that makes no decoder, or whose class needs a package that is not installed.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(
            "not_a_decoder",
            f"{kind} is an encoder-decoder, and ftcli trains decoders only: choose a decoder",
        )
    fitting = [
        (auto, mapping[type(config)]) for auto, mapping in CLASSES if type(config) in mapping
    ]
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True)
    if not fitting or masked:
        raise ModelError(
            "not_a_decoder",
            f"{kind} is not a causal language model of transformers, and ftcli trains nothing "
            "else: choose a decoder",
        )
    named = config.architectures or []
    auto: Any = next((auto for auto, own in fitting if own.__name__ in named), fitting[0][0])
    with opening(kind, "class"), torch.device("meta"):  # takes no memory, and 0.1 s
        auto.from_config(deepcopy(config))
    return auto


def mend_text_forward(network: PreTrainedModel) -> None:
    """Mend two classes of transformers 5.24 that fail on text alone."""
    for module in network.modules():
        name = type(module).__name__
        if name == "Llama4ForConditionalGeneration":  # modeling_llama4.py: it reads what is not set
            module.get_submodule("language_model").register_forward_hook(_without_images)
        if name == "Molmo2Model":  # modeling_molmo2.py: asks for the kinds of tokens in training
            module.register_forward_pre_hook(_all_text, with_kwargs=True)


def _without_images(_: nn.Module, __: Any, output: Any) -> None:
    if not isinstance(output, tuple):
        output.image_outputs = None


def _all_text(_: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if named.get("mm_token_type_ids") is None and (ids := named.get("input_ids")) is not None:
        return inputs, named | {"mm_token_type_ids": torch.zeros_like(ids)}
    return inputs, named
