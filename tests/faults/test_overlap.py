"""Fault 27: duplicate rows, and prompts that are both held out and trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcli.cli import run
from ftcli.data.dataset import SPLITS
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.errors import DataError
from tests.faults.bench import Bench, bench_in

pytestmark = pytest.mark.fault(27)
Row = tuple[str, str]
Observed = Callable[[str], None]


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    return bench_in(tmp_path, tiny_model)


def write(bench: Bench, name: str, rows: Sequence[Row]) -> str:
    lines = (json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows)
    (bench.folder / name).write_text("".join(lines))
    return name


def many(letter: str, number: int) -> list[Row]:
    return [(f"{letter}{n}", "x") for n in range(number)]


def test_the_first_of_equal_rows_is_kept_in_each_file(bench: Bench) -> None:
    train = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("a", "x")]
    held = [("c", "x"), ("c", "x"), ("d", "x")]
    files = {
        "train": write(bench, "train.jsonl", train),
        "validation": write(bench, "v.jsonl", held),
    }
    found = bench.prepare(**files)
    assert [line for line, _ in found.rows()] == [1, 2, 4]
    assert found.prepared.duplicates == 3
    assert found.prepared.validation.rows == 2
    found.require_sum()
    every = bench.prepare(**files, deduplicate=False)
    assert (every.prepared.train.rows, every.prepared.validation.rows) == (5, 3)
    assert every.prepared.duplicates == 0


LEAKS = {
    "a validation file": (
        {"validation": [("v0", "x"), ("a1", "another answer"), ("a2", "x")]},
        "validation.jsonl:2 (in train too: train.jsonl:2), "
        "validation.jsonl:3 (in train too: train.jsonl:3)",
    ),
    "a test file": ({"test": [("a1", "x")]}, "test.jsonl:1 (in train too: train.jsonl:2)"),
    "both files": (
        {"validation": [("v0", "x")], "test": [("t0", "x"), ("v0", "y")]},
        "test.jsonl:2 (in validation too: validation.jsonl:1)",
    ),
}


@pytest.mark.parametrize("name", list(LEAKS))
def test_a_leak_from_a_file_is_an_error_unless_allowed(
    name: str, bench: Bench, observed: Observed
) -> None:
    files, named = LEAKS[name]
    keys = {side: write(bench, f"{side}.jsonl", rows) for side, rows in files.items()}
    keys["train"] = write(bench, "train.jsonl", many("a", 4))
    with pytest.raises(DataError) as caught:
        bench.prepare(**keys)
    overlap = named.count("too")
    assert (caught.value.code, caught.value.exit_code, str(caught.value)) == (
        "overlap",
        1,
        f"{overlap} held-out rows have a prompt that another split has too: {named}; remove "
        "them, or set data.allow_overlap: true",
    )
    found = bench.prepare(**keys, allow_overlap=True)
    assert found.prepared.overlap == overlap
    found.require_sum()
    observed(f"{name}: exit 1, {overlap} of {overlap} named; counted where allowed")


@pytest.mark.parametrize(("share", "file"), [("validation", "test"), ("test", "validation")])
def test_a_share_of_the_training_rows_leaks_into_a_file(
    share: str, file: str, bench: Bench
) -> None:
    """A prompt of a held-out file is in no other split."""
    train = write(bench, "train.jsonl", many("a", 10))
    there = bench.prepare(train=train, **{share: 3}).folder
    rows = read_split(there, "validation" if share == "validation" else "test")
    prompt = json.loads(rows.column("messages")[0].as_py())[0][1]
    held = write(bench, "held.jsonl", [("b", "x"), (prompt, "x")])
    with pytest.raises(DataError, match=rf"held\.jsonl:2 \(in {share} too: train\.jsonl:\d+\)"):
        bench.prepare(train=train, **{share: 3, file: held})


def test_a_row_that_is_no_duplicate_decides(bench: Bench) -> None:
    """A duplicate is in no split; its prompt is in the split of the row that is kept."""
    train = write(bench, "train.jsonl", [("a", "x"), ("a", "x"), ("b", "x")])
    held = write(bench, "v.jsonl", [("c", "x"), ("c", "x")])
    assert bench.prepare(train=train, validation=held).prepared.overlap == 0


prompts = st.sampled_from("abcdefgh")
some = st.lists(st.tuples(prompts, st.sampled_from("xy")), max_size=8)


def test_overlap_is_what_sets_find(bench: Bench, complete: bool, observed: Observed) -> None:
    looked = 0

    @settings(max_examples=500 if complete else 50, deadline=None)
    @given(train=some, validation=some, test=some)
    def check(train: list[Row], validation: list[Row], test: list[Row]) -> None:
        nonlocal looked
        files = {"train": [("z", "x"), *train], "validation": validation, "test": test}
        keys = {side: write(bench, f"{side}.jsonl", rows) for side, rows in files.items()}
        found = bench.prepare(**keys, allow_overlap=True)
        found.require_sum()
        of = {side: {prompt for prompt, _ in rows} for side, rows in files.items()}
        overlap = sum(prompt in of["train"] for prompt, _ in validation)
        overlap += sum(prompt in of["train"] | of["validation"] for prompt, _ in test)
        assert found.prepared.overlap == overlap
        for split in SPLITS:
            rows = read_split(found.folder, split).column("messages").to_pylist()
            turns = [json.loads(row) for row in rows]
            assert [(turn[0][1], turn[1][1]) for turn in turns] == list(dict.fromkeys(files[split]))
        looked += sum(len(rows) for rows in files.values())

    check()
    observed(f"{looked:,} random rows in three files: the overlap that sets find, no more")


def test_the_command_says_it(
    bench: Bench, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(bench, "train.jsonl", [*many("a", 4), ("a0", "x")])
    held = write(bench, "held.jsonl", [("a1", "y"), ("b", "x")])
    recipe = write_recipe(data={"train": train, "validation": held})
    assert run(["prepare", str(recipe), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "overlap"
    assert run(["prepare", str(recipe), "--set", "data.allow_overlap=true"]) == 0
    shown = capsys.readouterr().out
    assert "duplicates  1   kept the first of each" in shown
    assert "overlap     1   held-out prompts that are also in another split (allowed)" in shown
