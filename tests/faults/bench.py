"""Files that are prepared with the tiny model, and what becomes of their rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ftcli.config.loader import with_absolute_paths
from ftcli.config.recipe import Recipe
from ftcli.console import Terminal
from ftcli.data.dataset import SPLITS, Dataset, read_rejected
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.data.tokenizing.rendering import IGNORED, Renderer
from ftcli.data.tokenizing.tokenize import prepare
from ftcli.models.load import load_renderer

Turns = list[list[str]]


@dataclass
class Bench:
    """Prepares files of a folder with the tiny model."""

    folder: Path
    model: Path
    renderer: Renderer
    numbers: Iterator[int]

    def prepare(self, **data: Any) -> Outcome:
        keys = {"name": "rows", "model": {"id": str(self.model)}, "method": {"mode": "lora"}}
        keys["data"] = {"validation": 0, "max_length": 2048, **data}
        recipe = with_absolute_paths(Recipe.model_validate(keys), self.folder)
        there = self.folder / f"data-{next(self.numbers)}"
        with chdir(self.folder):  # rows are named as from here
            prepared = prepare(recipe, self.renderer, there, Terminal())
        return Outcome(prepared, there, self.renderer)

    def of(self, name: str, content: bytes | str, **data: Any) -> Outcome:
        """What becomes of one file, all of it for training."""
        (self.folder / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
        return self.prepare(train=name, **data)


@dataclass
class Outcome:
    prepared: Dataset
    folder: Path
    renderer: Renderer

    def rows(self) -> list[tuple[int, Turns]]:
        """Line and turns of the rows to train on."""
        rows = read_split(self.folder, "train").select(["line", "messages"]).to_pylist()
        return [(row["line"], json.loads(row["messages"])) for row in rows]

    def trained(self) -> list[str]:
        """What the labels of each row say."""
        rows = read_split(self.folder, "train").column("labels").to_pylist()
        decode = self.renderer.tokenizer.decode
        return [decode([label for label in row if label != IGNORED]) for row in rows]

    def problems(self) -> dict[int, str]:
        return {row.origin.line: row.reason for row in read_rejected(self.prepared, self.folder)}

    def require_sum(self) -> None:
        """Read = accepted + rejected + duplicates, and each reject is named."""
        p = self.prepared
        assert p.rows_read == p.rows_accepted + p.rows_rejected + p.duplicates
        assert p.rows_rejected == len(list(read_rejected(p, self.folder)))
        assert p.rows_accepted == sum(read_split(self.folder, split).num_rows for split in SPLITS)


def bench_in(folder: Path, model: Path) -> Bench:
    keys = {"name": "rows", "model": {"id": str(model)}, "method": {"mode": "lora"}}
    recipe = with_absolute_paths(
        Recipe.model_validate(keys | {"data": {"train": "none.jsonl"}}), folder
    )
    return Bench(folder, model, load_renderer(recipe, str(model)), count())


def asked(prompt: str, completion: str) -> Turns:
    return [["user", prompt], ["assistant", completion]]
