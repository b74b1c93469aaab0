from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.data.tokenizing.prefix_tree import build_prefix_tree
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.models.batches import length_batches, packed, padded


def test_rows_are_padded_on_the_right_and_padding_is_not_trained_on() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
        {"input_ids": [8, 9], "labels": [IGNORED, 9]},
    ]
    batch = padded(rows, pad_id=2)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 2]]
    assert batch.sources.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.layout is None and batch.positions is None


@pytest.mark.fault(11)
def test_a_padding_token_that_ends_answers_too_stays_trained_on() -> None:
    """Fault 11: with pad = end of text, a mask made from ids would hide the end token."""
    rows = [
        {"input_ids": [5, 2], "labels": [IGNORED, 2]},
        {"input_ids": [5, 6, 2], "labels": [IGNORED, 6, 2]},
    ]
    for batch in (
        padded(rows, pad_id=2),
        packed(rows, share_prefix=False),
        packed(rows, share_prefix=True),
    ):
        assert batch.targets.tolist() == [2, 6, 2]


@pytest.mark.parametrize(
    ("tokens", "most", "filled"), [(60, None, 64), (64, None, 64), (60, 62, 62), (70, 62, 70)]
)
def test_packed_rows_are_filled_up_within_what_there_is_room_for(
    tokens: int, most: int | None, filled: int
) -> None:
    row = {"input_ids": [5] * tokens, "labels": [5] * tokens}
    batch = packed([row], share_prefix=False, most=most)
    assert batch.input_ids.shape == (1, filled)
    assert batch.label_count == tokens - 1 and int(batch.sources.max()) == tokens - 2


ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=30),
    min_size=1,
    max_size=6,
)


@given(rows=ROWS, prefix=st.integers(0, 40), share=st.booleans())
def test_every_label_and_what_stands_before_it_is_found_again(
    rows: list[list[tuple[int, bool]]], prefix: int, share: bool
) -> None:
    """Padded or packed, shared or not: each row can be read back by its places."""
    given_rows = [
        {
            "input_ids": [7] * prefix + [id_ for id_, _ in row],
            "labels": [IGNORED] * prefix + [id_ if wanted else IGNORED for id_, wanted in row],
        }
        for row in rows
    ]
    for batch in (padded(given_rows, pad_id=0), packed(given_rows, share_prefix=share)):
        ids = batch.input_ids.flatten().tolist()
        found: list[list[tuple[int, int]]] = [[] for _ in rows]
        for source, target, row in zip(
            batch.sources.tolist(), batch.targets.tolist(), batch.rows.tolist(), strict=True
        ):
            found[row].append((ids[source], target))
        for row, labels in zip(given_rows, found, strict=True):
            pairs = zip(row["input_ids"], row["labels"][1:], strict=False)
            assert labels == [(id_, label) for id_, label in pairs if label != IGNORED]
    tree = build_prefix_tree([row["input_ids"] for row in given_rows], share=share)
    for row, spans in zip(given_rows, tree.rows, strict=True):
        assert [id_ for span in spans for id_ in ids[slice(*span)]] == row["input_ids"]
        positions = [p for span in spans for p in batch.positions[0, slice(*span)].tolist()]
        assert positions == list(range(len(row["input_ids"])))


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
