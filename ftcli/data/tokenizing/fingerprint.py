"""Fingerprint of prepared rows: it changes with anything that changes their token ids."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ftcli.config.data import names_file
from ftcli.config.recipe import Data, Recipe
from ftcli.config.section import data_suffix
from ftcli.data.dataset import PART_NAMES
from ftcli.data.splits import rows_parts, source_digests, sources_of
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.runs.atomic import short_digest

# Raised when rows are prepared in another way.
FINGERPRINT_VERSION = 3


def fingerprint(recipe: Recipe, renderer: Renderer) -> str:
    """16 hex digits that change with the token ids."""
    return fingerprint_of(fingerprint_inputs(recipe, renderer))


def fingerprint_of(parts: dict[str, Any]) -> str:
    """`fingerprint`, given the result of `fingerprint_inputs`."""
    return short_digest(parts, 16)


def fingerprint_parts(recipe: Recipe, renderer: Renderer) -> dict[str, str]:
    """8 hex digits for each part of the fingerprint, by its name in messages."""
    parts = fingerprint_inputs(recipe, renderer)
    rows = rows_parts(parts.pop("files"))
    return rows | {PART_NAMES[name]: short_digest(part, 8) for name, part in parts.items()}


def fingerprint_inputs(recipe: Recipe, renderer: Renderer) -> dict[str, Any]:
    """Everything that determines the token ids, part by part."""
    data, tokenizer = recipe.data, renderer.tokenizer
    return {
        "version": FINGERPRINT_VERSION,
        "files": source_digests(data),
        "template": tokenizer.chat_template,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        # From tokenizer_config.json; the backend tokenizer does not have them.
        "roles": [tokenizer.bos_token_id, renderer.pad_id, *renderer.stop_ids],
        "data": _without_paths(data).model_dump(exclude={"shuffle", "too_long", "allow_overlap"})
        | {"drop": data.too_long == "drop"},
        "seed": recipe.training.seed,
    }


def _without_paths(data: Data) -> Data:
    """Replace each file's path by its suffix: the contents count, not the path."""

    def kind(source: str) -> str:
        return data_suffix(source) or source if Path(source).is_file() else source

    changes: dict[str, object] = {name: kind(file) for name, file in sources_of(data).items()}
    if data.replay is not None:
        replay = {"source": kind(data.replay.source)}
        changes["replay"] = data.replay.model_copy(update=replay)
    if data.template is not None and names_file(data.template):
        changes["template"] = None
    return data.model_copy(update=changes)
