from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcli.engine.batches import collate, length_batches
from ftcli.engine.rendering import IGNORED


def test_rows_are_padded_on_the_right_and_padding_is_not_trained_on() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
        {"input_ids": [8], "labels": [8]},
    ]
    tensors = collate(rows, pad_id=2)
    assert tensors["input_ids"].tolist() == [[5, 6, 7], [8, 2, 2]]
    assert tensors["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int64}


@pytest.mark.fault(11)
def test_a_padding_token_that_ends_answers_too_stays_trained_on() -> None:
    """Fault 11: with pad = end of text, a mask made from ids would hide the end token."""
    rows = [
        {"input_ids": [5, 2], "labels": [IGNORED, 2]},
        {"input_ids": [5, 6, 2], "labels": [IGNORED, 6, 2]},
    ]
    assert collate(rows, pad_id=2)["labels"][0].tolist() == [IGNORED, 2, IGNORED]


@given(
    rows=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5),
)
def test_every_row_is_found_again_in_its_tensor(rows: list[list[int]]) -> None:
    tensors = collate([{"input_ids": row, "labels": row, "line": [1]} for row in rows], pad_id=0)
    assert set(tensors) == {"input_ids", "labels"}
    for row, ids, labels in zip(rows, tensors["input_ids"], tensors["labels"], strict=True):
        assert ids.tolist() == row + [0] * (len(ids) - len(row))
        assert labels.tolist() == row + [IGNORED] * (len(ids) - len(row))


@given(lengths=st.lists(st.integers(1, 99), max_size=30), size=st.integers(1, 7))
def test_batches_by_length_hold_every_row_once_and_begin_with_the_longest(
    lengths: list[int], size: int
) -> None:
    batches = list(length_batches(lengths, size))
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(1 <= len(batch) <= size for batch in batches)
