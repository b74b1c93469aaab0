from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.config.data import Data
from ftcli.console import Terminal
from ftcli.data.dataset import SPLITS
from ftcli.data.example import Example, Message, Origin
from ftcli.data.splits import Assignment, Digests, PromptSet, assign_splits, find_splits
from ftcli.errors import DataError


def example(prompt: str, answer: str, line: int = 1) -> Example:
    messages = (Message("user", prompt), Message("assistant", answer))
    return Example(messages, Origin("shop.jsonl", line))


def split_of(
    examples: list[Example],
    validation: float = 0,
    test: float | None = 0,
    seed: int = 0,
    deduplicate: bool = True,
) -> Assignment:
    digests = Digests()
    for row in examples:
        digests.add(row.digest(), row.prompt_digest())
    return assign_splits(digests, validation, test, seed, deduplicate)


def counts(split: Assignment) -> tuple[int, int, int, int]:
    return (
        split.rows("train"),
        split.rows("validation"),
        split.rows("test"),
        split.rows("duplicate"),
    )


HUNDRED = [example(f"p{number}", "a") for number in range(100)]


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [
        (0, 0, (100, 0, 0, 0)),
        (0.1, 0, (90, 10, 0, 0)),
        (0.1, 0.2, (70, 10, 20, 0)),
        (7, 3, (90, 7, 3, 0)),
        (1, 1.0, (98, 1, 1, 0)),
        (0.001, 0, (99, 1, 0, 0)),
        (99, 0, (1, 99, 0, 0)),
    ],
)
def test_shares_and_counts(
    validation: float, test: float, expected: tuple[int, int, int, int]
) -> None:
    assert counts(split_of(HUNDRED, validation, test)) == expected


@pytest.mark.parametrize(
    ("prompts", "validation", "test", "expected"),
    [
        ([], 0.1, 0.1, (0, 0, 0, 0)),
        (["a"], 0.1, 0.1, (1, 0, 0, 0)),
        (["a", "b"], 0.1, 0, (1, 1, 0, 0)),
        (["a", "b"], 0.1, 0.1, (1, 1, 0, 0)),
        (["a", "b", "c"], 0.1, 0.1, (1, 1, 1, 0)),
        (["a"] * 9 + ["b"], 0.5, 0, (9, 1, 0, 0)),
        (["a"] * 6 + ["b"] * 4, 0.1, 0, (6, 4, 0, 0)),
    ],
    ids=["none", "one", "two", "two, both wanted", "three", "too large to fit", "smallest"],
)
def test_few_prompts(
    prompts: list[str], validation: float, test: float, expected: tuple[int, int, int, int]
) -> None:
    examples = [example(prompt, f"answer {number}") for number, prompt in enumerate(prompts)]
    assert counts(split_of(examples, validation, test)) == expected


def test_the_first_of_equal_rows_is_kept() -> None:
    examples = [example("p", "a"), example("p", "a"), example("p", "b"), example("p", "a")]
    assert [split_of(examples).split(index) for index in range(4)] == [
        "train",
        "duplicate",
        "train",
        "duplicate",
    ]
    assert split_of(examples, deduplicate=False).rows("train") == 4


def test_shares_are_of_the_rows_without_duplicates() -> None:
    assert counts(split_of(HUNDRED * 2, 0.1)) == (90, 10, 0, 100)


def test_the_seed_decides() -> None:
    assert split_of(HUNDRED, 0.1, seed=1) == split_of(HUNDRED, 0.1, seed=1)
    assert split_of(HUNDRED, 0.1, seed=1) != split_of(HUNDRED, 0.1, seed=2)


def test_test_rows_do_not_depend_on_validation() -> None:
    one, other = split_of(HUNDRED, 0.1, 0.2), split_of(HUNDRED, 0.3, 0.2)
    tested = [index for index in range(100) if one.split(index) == "test"]
    assert tested == [index for index in range(100) if other.split(index) == "test"]


@pytest.mark.parametrize(
    ("rows", "keys", "test_rows"),
    [
        (199, {}, 0),
        (200, {}, 20),
        (200, {"validation": 0}, 0),
        (200, {"test": 0}, 0),
        (200, {"test": 7}, 7),
        (200, {"validation": "held.jsonl"}, 20),
    ],
)
def test_a_test_split_is_taken_of_200_rows_or_more(
    rows: int, keys: dict[str, Any], test_rows: int, tmp_path: Path
) -> None:
    for name, count in (("rows", rows), ("held", 3)):
        pairs = [{"prompt": f"{name} {number}", "completion": "a"} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    names = {"train": "rows.jsonl"} | keys
    paths = {key: str(tmp_path / v) if isinstance(v, str) else v for key, v in names.items()}
    found = find_splits(Data.model_validate(paths), 0, Terminal())
    assert found.assignments["train"].rows("test") == test_rows
    assert "test" not in found.assignments


@pytest.mark.parametrize(("validation", "test"), [(100, 0), (60, 40), (0.5, 0.5), (0.5, 50)])
def test_nothing_left_to_train_on_is_an_error(validation: float, test: float) -> None:
    with pytest.raises(DataError) as caught:
        split_of(HUNDRED, validation, test)
    assert (caught.value.code, str(caught.value)) == (
        "data_split",
        f"data.validation ({validation}) and data.test ({test}) ask for 100 of 100 rows, which "
        "leaves none to train on",
    )


ROWS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), max_size=40)
SHARE = st.sampled_from([0, 0.1, 0.3, 0.45])


@given(rows=ROWS, validation=SHARE, test=SHARE, seed=st.integers(0, 9), order=st.randoms())
def test_a_prompt_has_one_side_whatever_the_order(
    rows: list[tuple[str, str]], validation: float, test: float, seed: int, order: random.Random
) -> None:
    examples = [example(prompt, answer) for prompt, answer in rows]
    sides = sides_by_prompt(examples, split_of(examples, validation, test, seed))
    assert all(len(found) == 1 for found in sides.values())
    assert not rows or {"train"} in sides.values()
    shuffled = list(examples)
    order.shuffle(shuffled)
    assert sides_by_prompt(shuffled, split_of(shuffled, validation, test, seed)) == sides


def sides_by_prompt(examples: list[Example], split: Assignment) -> dict[bytes, set[str]]:
    sides: dict[bytes, set[str]] = {}
    for index, row in enumerate(examples):
        if split.split(index) != "duplicate":
            sides.setdefault(row.prompt_digest(), set()).add(split.split(index))
    return sides


zeros = st.lists(st.sampled_from([0, 1, 255]), min_size=2, max_size=2).map(
    lambda end: bytes(14) + bytes(end)
)


@given(pairs=st.lists(st.tuples(zeros, zeros), max_size=30), deduplicate=st.booleans())
def test_digests_that_end_in_zeros_differ(
    pairs: list[tuple[bytes, bytes]], deduplicate: bool
) -> None:
    """numpy strips trailing zero bytes, which must not make digests equal."""
    digests = Digests()
    for whole, prompt in pairs:
        digests.add(whole, prompt)
    split = assign_splits(digests, 0, 0, 0, deduplicate)
    seen: set[bytes] = set()
    kept = []
    for number, (whole, prompt) in enumerate(pairs):
        first = whole not in seen or not deduplicate
        assert split.split(number) == ("train" if first else "duplicate")
        kept += [prompt] if first else []
        seen.add(whole)
    prompts = PromptSet(digests, split, "train")
    for prompt in {bytes(14) + bytes([a, b]) for a in (0, 1, 255) for b in (0, 1, 255)}:
        assert (prompt in prompts) == (prompt in kept)


def test_splits_are_the_same_in_every_version() -> None:
    split = split_of(HUNDRED, 0.03, 0.03, seed=7)
    held_out = {name: [n for n in range(100) if split.split(n) == name] for name in SPLITS[1:]}
    assert held_out == {"validation": [9, 38, 85], "test": [36, 95, 98]}
