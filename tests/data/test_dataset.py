from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ftcli.data.dataset import (
    SPLITS,
    LongestRow,
    Replayed,
    SplitCounts,
    load_dataset,
    save_dataset,
)
from ftcli.data.example import Origin, RejectedRow
from ftcli.errors import FtcliError
from tests.conftest import prepared_data

PREPARED = prepared_data(
    parts={"chat template": "0123abcd", "seed": "00ff00ff"},
    digests={"train": "00" * 32, "validation": "11" * 32, "test": "22" * 32},
    rows_read=20,
    rows_rejected=2,
    duplicates=3,
    validation=SplitCounts(3, 600, 150),
    test=SplitCounts(2, 400, 90),
    answer_tokens=760,
    answer_tokens_lost=20,
    longest=LongestRow("Größe.jsonl", 7, 321),
    stop_ids=(2, 5),
    rejected=(
        RejectedRow(Origin("Größe.jsonl", 3), "empty answer"),
        RejectedRow(Origin("Größe.jsonl", 9), "not JSON"),
    ),
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert load_dataset(tmp_path) is None
    save_dataset(PREPARED, tmp_path)
    assert load_dataset(tmp_path) == PREPARED


def test_what_is_replayed_is_kept_with_the_counts(tmp_path: Path) -> None:
    replayed = Replayed("wiki.jsonl", 0.2, 5, 4, 800, 796, 9, 1, 1, 0, 2, 1, 30)
    prepared = replace(PREPARED, replay=replayed)
    save_dataset(prepared, tmp_path)
    assert load_dataset(tmp_path) == prepared
    assert prepared.rows_accepted == PREPARED.rows_accepted
    assert prepared.epoch_counts == SplitCounts(14, 2800, 1296)
    assert PREPARED.epoch_counts is PREPARED.train


def test_counts_add_up() -> None:
    p = PREPARED
    assert p.rows_accepted == 15
    assert p.rows_read == p.rows_accepted + p.rows_rejected + p.duplicates
    assert sum(p.counts(split).rows for split in SPLITS) == p.rows_accepted
    assert p.counts("test") is p.test


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b"\xff",
        json.dumps(asdict(PREPARED) | {"more": 1}).encode(),
        json.dumps(asdict(PREPARED) | {"train": None}).encode(),
        json.dumps(asdict(replace(PREPARED)) | {"longest": {"file": "a"}}).encode(),
    ],
)
def test_a_broken_file_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prepared.json").write_bytes(content)
    with pytest.raises(FtcliError, match="delete it and prepare again") as caught:
        load_dataset(tmp_path)
    assert (caught.value.code, caught.value.file) == (
        "prepared_broken",
        str(tmp_path / "prepared.json"),
    )
