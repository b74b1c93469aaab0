"""Whether rows and answers stay within what a model reads: its context, and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from transformers import PreTrainedConfig

from ftcli.config.recipe import Method, Prefix, Prompt, Recipe
from ftcli.data.prepared import SPLITS, Prepared
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.data.tokenizing.rows import read_split
from ftcli.errors import DataError, ModelError


@dataclass(frozen=True)
class Reach:
    """How far a model reads, in tokens of a row and in ids of a token."""

    context: int | None
    """None: its config.json names no limit."""
    vocabulary: int


def reach_of(config: PreTrainedConfig) -> Reach:
    """What config.json says; a stretched context counts as stretched."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return Reach(None, text.vocab_size)
    rope = getattr(text, "rope_parameters", None) or {}
    return Reach(max([limit, *_stretched(rope)]), text.vocab_size)


def _stretched(rope: Mapping[str, Any]) -> Iterator[int]:
    """Lengths to which rules of rotation stretch the first context (YaRN and its like)."""
    for value in rope.values():
        if isinstance(value, Mapping):  # a rule for each kind of layer (Gemma 3)
            yield from _stretched(value)
    first, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    if first and factor:
        yield int(first * factor)


def require_within_reach(
    folder: Path, prepared: Prepared, renderer: Renderer, recipe: Recipe, reach: Reach
) -> None:
    """Prove it of every row in a data folder, and of the answers that are drawn to held-out rows.

    Raises DataError (`context`), naming the first row, and ModelError (`tokenizer`).
    """
    _require_known_tokens(folder, prepared, renderer, reach.vocabulary)
    if reach.context is None:
        return
    room = reach.context - _virtual_tokens(recipe.method)
    before = "" if room == reach.context else f" behind {reach.context - room} virtual tokens"
    longest = prepared.longest
    if longest.tokens > room:
        raise DataError(
            "context",
            f"{longest.tokens} tokens{before}, and {recipe.model.id} reads {reach.context} "
            f"(max_position_embeddings); lower data.max_length to {room} or less, or shorten the "
            "row",
            file=longest.file,
            line=longest.line,
        )
    _require_room_to_answer(folder, prepared, recipe, room, reach.context)


def _require_room_to_answer(
    folder: Path, prepared: Prepared, recipe: Recipe, room: int, context: int
) -> None:
    new = recipe.generation.max_new_tokens
    for split in (split for split in reversed(SPLITS) if prepared.counts(split).rows):
        rows = read_split(folder, split)
        prompts = rows.column("prompt_tokens").combine_chunks()
        longest = pc.max(prompts).as_py() or 0
        if longest and longest + new > room:
            row = rows.slice(pc.index(prompts, longest).as_py(), 1).to_pylist()[0]
            raise DataError(
                "context",
                f"its prompt of {longest} tokens and generation.max_new_tokens {new} are more than "
                f"{recipe.model.id} reads ({context}, max_position_embeddings); lower "
                f"generation.max_new_tokens to {max(room - longest, 1)}, or shorten the prompt",
                file=row["file"],
                line=row["line"],
            )


def _require_known_tokens(
    folder: Path, prepared: Prepared, renderer: Renderer, vocabulary: int
) -> None:
    """Raise ModelError for a token that has no row in the embeddings: training would stop at it."""
    highest = [max(prepared.stop_ids), prepared.pad_id]
    for split in prepared.row_files:
        chunks = read_split(folder, split).column("input_ids").chunks
        highest += [pc.max(chunk.values).as_py() for chunk in chunks if len(chunk.values)]
    if (worst := max(highest)) >= vocabulary:
        raise ModelError(
            "tokenizer",
            f"the tokenizer has token {worst} ({renderer.tokenizer.decode([worst])!r}), and the "
            f"embeddings of the model end at {vocabulary - 1} (vocab_size): take the tokenizer "
            "that came with the model, or a model with larger embeddings",
        )


def _virtual_tokens(method: Method) -> int:
    return method.virtual_tokens if isinstance(method, Prefix | Prompt) else 0
