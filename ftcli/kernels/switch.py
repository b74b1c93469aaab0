"""Which attention a model's layers take, for as long as it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


@contextmanager
def attention_named(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Have the layers take the attention that is registered with transformers under this name.

    A backward pass belongs in it too: checkpointing runs layers again.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
