"""The rows of a smoke test: all fit in the context, and the longest are an excerpt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedConfig

from ftcli.config.recipe import PrefixTuning, PromptTuning, Recipe
from ftcli.data.dataset import (
    SPLITS,
    Dataset,
    LongestRow,
    RowsOf,
    Split,
    SplitCounts,
    row_lengths,
    save_dataset,
    split_digests,
    split_file,
)
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.errors import DataError, ModelError
from ftcli.models.architectures.model_class import open_config
from ftcli.runs.atomic import atomic_directory
from ftcli.shell import shown_source
from ftcli.training.job import BaseModel

# Context and vocabulary


def context_length(config: PreTrainedConfig) -> int | None:
    """The context length, scaled if RoPE is; None if config.json has none."""
    text = config.get_text_config(decoder=True)
    limit: int | None = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return None
    return max([limit, *_scaled(getattr(text, "rope_parameters", None) or {})])


def _scaled(rope: Mapping[str, Any]) -> Iterator[int]:
    """Lengths to which RoPE is scaled (YaRN and others)."""
    for value in rope.values():
        if isinstance(value, Mapping):  # parameters per layer type (Gemma 3)
            yield from _scaled(value)
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    if original and factor:
        yield int(original * factor)


def require_within_context(
    folder: Path, dataset: Dataset, model: BaseModel, recipe: Recipe
) -> None:
    """Check that every prepared row, and every held-out prompt with its answer, fits the context.

    Raises DataError (`context`), naming the first row, and ModelError (`tokenizer`).
    """
    config = open_config(model.source, model.revision)
    _require_known_tokens(folder, dataset, model, config.get_text_config(decoder=True).vocab_size)
    context = context_length(config)
    if context is None:
        return
    virtual = (
        recipe.method.virtual_tokens
        if isinstance(recipe.method, PrefixTuning | PromptTuning)
        else 0
    )
    after, room = f" after {virtual} virtual tokens" if virtual else "", context - virtual
    longest = dataset.longest
    if longest.tokens > room:
        raise DataError(
            "context",
            f"{longest.tokens} tokens{after}, and the context of {shown_source(recipe.model.id)} "
            f"has {context} (max_position_embeddings); lower data.max_length to {room} or less, or "
            "shorten the row",
            file=longest.file,
            line=longest.line,
        )
    new = recipe.generation.max_new_tokens
    for split in (split for split in reversed(SPLITS) if dataset.counts(split).rows):
        rows = read_split(folder, split)
        prompts = rows.column("prompt_tokens").combine_chunks()
        prompt = pc.max(prompts).as_py() or 0
        if prompt and prompt + new > room:
            row = rows.slice(pc.index(prompts, prompt).as_py(), 1).to_pylist()[0]
            raise DataError(
                "context",
                f"its prompt of {prompt} tokens and generation.max_new_tokens {new} exceed the "
                f"context of {shown_source(recipe.model.id)} ({context}, "
                f"max_position_embeddings); lower generation.max_new_tokens to "
                f"{max(room - prompt, 1)}, or shorten the prompt",
                file=row["file"],
                line=row["line"],
            )


def _require_known_tokens(
    folder: Path, dataset: Dataset, model: BaseModel, vocabulary: int
) -> None:
    """Raise ModelError (`tokenizer`) for a token id that the embeddings do not have."""
    highest = [max(dataset.stop_ids), dataset.pad_id]
    for split in dataset.row_files:
        chunks = read_split(folder, split).column("input_ids").chunks
        highest += [pc.max(chunk.values).as_py() for chunk in chunks if len(chunk.values)]
    if (worst := max(highest)) >= vocabulary:
        token = model.renderer.tokenizer.decode([worst])
        raise ModelError(
            "tokenizer",
            f"the tokenizer has token {worst} ({token!r}), and the model's embeddings end at "
            f"{vocabulary - 1} (vocab_size): use the model's own tokenizer, or a model with larger "
            "embeddings",
        )


# An excerpt


def write_excerpt(
    source: Path, dataset: Dataset, folder: Path, rows: Mapping[str, int], *, longest: int
) -> Dataset:
    """Write this many rows of each split into `folder`: the `longest` longest first, then others
    evenly spread.

    The fingerprint stays, so that `prepare` accepts the excerpt as the recipe's rows. Replayed rows
    become training rows.
    """
    counts: dict[Split, SplitCounts] = {}
    worst = LongestRow("", 0, 0)
    with atomic_directory(folder) as temporary:
        for split in SPLITS:
            replays = split == "train" and dataset.replay is not None
            names: tuple[RowsOf, ...] = ("train", "replay") if replays else (split,)
            lengths = [length for name in names for length in row_lengths(source, name)]
            table = pa.concat_tables([read_split(source, name) for name in names])
            # Slices: `take` would copy all rows.
            parts = [table.slice(row, 1) for row in _chosen(lengths, rows.get(split, 0), longest)]
            table = pa.concat_tables([table.slice(0, 0), *parts])
            with (
                pa.OSFile(str(split_file(temporary, split)), "wb") as sink,
                pa.ipc.new_stream(sink, table.schema) as stream,
            ):
                stream.write_table(table)
            chosen = table.select(["file", "line", "labels"]).to_pylist()
            tokens = sum(len(row["labels"]) for row in chosen)
            labels = sum(label != IGNORED for row in chosen for label in row["labels"])
            counts[split] = SplitCounts(len(chosen), tokens, labels)
            found = [LongestRow(row["file"], row["line"], len(row["labels"])) for row in chosen]
            worst = max([worst, *found], key=lambda row: row.tokens)
        excerpt = replace(
            dataset,
            train=counts["train"],
            validation=counts["validation"],
            test=counts["test"],
            longest=worst,
            replay=None,
            rejected=(),  # reported when the rows were prepared
            digests=split_digests(temporary),
        )
        save_dataset(excerpt, temporary)
    return excerpt


def _chosen(lengths: list[int], count: int, longest: int) -> list[int]:
    """Numbers of rows."""
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    first, rest = by_length[:longest], sorted(by_length[longest:])
    wanted = max(0, min(count - len(first), len(rest)))
    return first[:count] + [rest[place * len(rest) // wanted] for place in range(wanted)]
