"""A few rows of a preparation: the longest, then some from everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ftcli.cli import run
from ftcli.data.dataset import (
    Dataset,
    Split,
    SplitCounts,
    damaged_files,
    load_dataset,
    row_lengths,
)
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.training.smoke.rows import write_excerpt
from tests.conftest import Recipes

ASKED: dict[Split, int] = {"train": 6, "validation": 3, "test": 2}


@pytest.fixture
def prepared(write_recipe: Recipes, rows_file: Path, tmp_path: Path) -> Path:
    """A data folder; the row of line 40 is the longest, and none is for tests."""
    lines = [json.loads(line) for line in rows_file.read_text().splitlines()]
    lines[39]["completion"] += " kettle" * 9
    rows_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = write_recipe(data={"train": rows_file.name, "validation": 8})
    assert run(["prepare", str(recipe)]) == 0
    return tmp_path / "runs" / "tiny" / "data"


def loaded(folder: Path) -> Dataset:
    found = load_dataset(folder)
    assert found is not None
    return found


def test_the_longest_rows_come_first_and_the_rest_from_everywhere(
    prepared: Path, tmp_path: Path
) -> None:
    whole, folder = loaded(prepared), tmp_path / "few"
    found = write_excerpt(prepared, whole, folder, ASKED, longest=2)
    assert loaded(folder) == found and not damaged_files(found, folder)
    lengths = sorted(row_lengths(prepared, "train"), reverse=True)
    assert row_lengths(folder, "train")[:2] == lengths[:2]
    rows = read_split(folder, "train").to_pylist()
    assert len({row["line"] for row in rows}) == 6
    assert [row for row in read_split(prepared, "train").to_pylist() if row in rows[2:]] == rows[2:]
    assert found.longest == whole.longest and found.longest.line == 40


def test_counts_are_those_of_the_few_and_all_else_stays(prepared: Path, tmp_path: Path) -> None:
    whole, folder = loaded(prepared), tmp_path / "few"
    found = write_excerpt(prepared, whole, folder, ASKED, longest=2)
    labels = [row["labels"] for row in read_split(folder, "validation").to_pylist()]
    trained = sum(label >= 0 for row in labels for label in row)
    assert found.validation == SplitCounts(3, sum(map(len, labels)), trained)
    assert found.test == SplitCounts(0, 0, 0) and row_lengths(folder, "test") == []
    kept = {
        name: getattr(found, name)
        for name in ("train", "validation", "longest", "digests", "rejected")
    }
    assert replace(whole, **kept) == found


def test_no_more_rows_than_there_are(prepared: Path, tmp_path: Path) -> None:
    whole, folder = loaded(prepared), tmp_path / "few"
    found = write_excerpt(prepared, whole, folder, {"train": 900, "validation": 900}, longest=5)
    assert (found.train, found.validation) == (whole.train, whole.validation)
