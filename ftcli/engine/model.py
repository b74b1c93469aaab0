"""Load tokenizer and base as planned, with every way of failing put into words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ftcli.engine.loss import require_known_head
from ftcli.engine.methods import keep_training_exact
from ftcli.engine.rendering import Renderer
from ftcli.engine.template import choose_template
from ftcli.errors import ModelError
from ftcli.hub import hub_error
from ftcli.loading import Loaded
from ftcli.recipe import Data, Model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}


def load_renderer(loaded: Loaded, source: str) -> Renderer:
    """Tokenizer and chat template of the recipe's model."""
    recipe = loaded.recipe
    tokenizer = load_tokenizer(source, recipe.model.revision)
    note = choose_template(tokenizer, loaded)
    return renderer_of(tokenizer, recipe.data, note)


def renderer_of(
    tokenizer: PreTrainedTokenizerBase, data: Data, note: str | None = None
) -> Renderer:
    """A renderer that does with this tokenizer what the recipe's data section asks for."""
    return Renderer(tokenizer, data.loss_on, tuple(data.template_kwargs.items()), note)


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or the hub; raises ModelError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _model_error(error, source, "tokenizer") from error
    if not tokenizer.is_fast:
        raise ModelError(
            "tokenizer", f"{source}: its tokenizer has no fast version, which finds the answers"
        )
    return tokenizer


def compute_dtype(precision: str) -> torch.dtype:
    """The type in which products are computed."""
    return DTYPES["bf16" if precision == "pure-bf16" else precision]


def open_config(source: str, revision: str | None) -> PreTrainedConfig:
    """The base's config.json; runs no code of the repository."""
    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def load_base(
    source: str,
    model: Model,
    *,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """The base model in evaluation mode; raises ModelError. Runs no code of the repository."""
    extra: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    if quantization is not None:
        extra["quantization_config"] = quantization
    try:
        base = AutoModelForCausalLM.from_pretrained(
            source,
            revision=model.revision,
            dtype=dtype,
            attn_implementation=ATTENTION[attention],
            trust_remote_code=False,
            **extra,
        )
    except (OSError, ValueError, ImportError) as error:
        raise _model_error(error, source, "model") from error
    base.config.use_cache = True
    keep_training_exact(base)
    with torch.autocast(device.type, torch.bfloat16, enabled=attention == "flash"):
        require_known_head(base)  # flash attention takes 16-bit tensors only
    return base


def _model_error(error: Exception, source: str, what: str) -> ModelError:
    cause = error.__cause__
    if not Path(source).exists() and isinstance(cause, Exception):
        found = hub_error(cause, source, "model")
        if isinstance(found, ModelError) and found.code != "hub_unreachable":
            return found
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError("model", f"{source}: the {what} cannot be opened: {first}")
