"""A small recipe, and helpers to load it, valid or broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.config.loader import RecipeFile, load_recipe
from ftcli.errors import UsageError

# Line 1 is the name, 3 the model's id, 5 the mode, 7 the training rows.
SHOP = """\
name: shop
model:
  id: smollm2-135m
method:
  mode: lora
data:
  train: shop.jsonl
"""


def load(text: str | bytes, *overrides: str) -> RecipeFile:
    file = Path("shop.yaml")
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_recipe(file, overrides)


def fault(text: str | bytes, *overrides: str) -> str:
    """The text of a recipe's error; the exit code is always 2."""
    with pytest.raises(UsageError) as caught:
        load(text, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def method(keys: str) -> str:
    """The recipe with one more line below `mode`, which is line 6."""
    return SHOP.replace("mode: lora\n", f"mode: lora\n  {keys}\n")


def more(text: str) -> str:
    """The recipe with lines at its end, from line 8 on."""
    return SHOP + text
