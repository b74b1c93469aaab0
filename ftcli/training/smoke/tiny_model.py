"""A tiny random model of the same architecture, with the same tokenizer and module names.

Names, layer types, token ids and context are the original's. Widths are small, and layers are few
unless the recipe names some by number, so that a training takes seconds.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ftcli.config.recipe import LoraKeys, Method, Recipe
from ftcli.errors import ModelError
from ftcli.models.architectures.model_class import model_class, open_config
from ftcli.models.files.base_files import model_folder
from ftcli.runs.atomic import write_json
from ftcli.training.smoke.tiny_config import tiny_values

CONFIG = "config.json"

# Length of the vector added to all embeddings, which are 0.16 long (0.02 × √64).
PREFERENCE = 2.0

# Files of a tokenizer and of generation (transformers 5.24).
TOKENIZER_FILES = (
    "tokenizer*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
)


@dataclass(frozen=True)
class TinySize:
    """Sizes of a tiny model."""

    layers: int
    hidden: int
    vocab: int


def build_tiny_model(source: str, recipe: Recipe, folder: Path) -> TinySize:
    """Write a tiny version of the recipe's model into `folder`, in the type of its files.

    Needs only config.json and the tokenizer's files of the original. Raises ModelError.
    """
    revision = recipe.model.revision
    original = open_config(source, revision)
    there = model_folder(source, revision)
    if there is None:  # its config.json was read just now
        raise ModelError("model", f"{source}: its files are not kept on this machine")
    values = json.loads((there / CONFIG).read_text(encoding="utf-8"))
    values = tiny_values(values, original.to_dict(), all_layers=_names_layers(recipe.method))
    config = type(original).from_dict(dict(values))
    torch.manual_seed(recipe.training.seed)
    model = model_class(config).from_config(config, dtype=original.dtype or torch.float32)
    _prefer_one_token(model)
    model.save_pretrained(folder)
    # With the original's keys: transformers renames some.
    write_json(folder / CONFIG, values)
    _copy_tokenizer(there, folder)
    text = config.get_text_config(decoder=True)
    return TinySize(text.num_hidden_layers, text.hidden_size, text.vocab_size)


def _prefer_one_token(model: PreTrainedModel) -> None:
    """Add one vector to all embeddings and to one token's row of the head.

    A random model's logits are nearly equal, so that the rounding of a merge would change the first
    token, which it does not in a trained model.
    """
    head = model.get_output_embeddings()
    if head is None:  # some classes do not name theirs
        return
    inputs, outputs = model.get_input_embeddings().weight, head.weight
    direction = torch.randn(inputs.shape[1])
    direction *= PREFERENCE / direction.norm()
    with torch.no_grad():
        inputs += direction.to(inputs.dtype)
        if outputs.shape[1] == len(direction):  # else layers of their own come before the head
            outputs[len(outputs) // 2] += direction.to(outputs.dtype)


def _names_layers(method: Method) -> bool:
    """Whether the method names layers by number."""
    if not isinstance(method, LoraKeys):
        return False
    targets = [] if isinstance(method.target_modules, str) else method.target_modules
    # `fc1` matches too, which only takes more time.
    numbered = any(re.search(r"\d", name) for name in (*targets, *method.rank_pattern))
    return numbered or method.layers is not None


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in TOKENIZER_FILES:
        for file in filter(Path.is_file, source.glob(pattern)):
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
