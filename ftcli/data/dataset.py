"""Prepared rows on disk: what they were made from, counts and a fingerprint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ftcli.data.example import Message, Origin, RejectedRow
from ftcli.errors import FtcliError
from ftcli.runs.atomic import sha256_file, write_json

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Assigned = Literal["train", "validation", "test", "duplicate"]
RowsOf = Literal["train", "validation", "test", "replay"]
"""Row files: the splits of the task, and the replayed rows."""
ROW_FILES: tuple[RowsOf, ...] = (*SPLITS, "replay")

# Field experience (MISSION): under 100 rows a good prompt wins; 500 to 5,000 rows are ideal.
TOO_FEW_ROWS = 100
IDEAL_ROWS = (500, 5000)

# Rejected rows in prepared.json, which every command reads; rejected.jsonl has all.
MOST_REJECTED = 1000
# In characters: a reason quotes the row.
LONGEST_REASON = 500

# Parts of the fingerprint besides the files, as messages name them.
PART_NAMES = {
    "version": "way of preparing",
    "template": "chat template",
    "tokenizer": "tokenizer",
    "roles": "roles of tokens",
    "data": "data keys of the recipe",
    "seed": "seed",
}

# Share of answer tokens that max_length may cut without an error.
TRUNCATION_BUDGET = 0.01


@dataclass(frozen=True)
class LongestRow:
    """The row that sets the memory of a step."""

    file: str
    line: int
    tokens: int

    def or_longer(self, origin: Origin, tokens: int) -> LongestRow:
        """This row, or another one that has more tokens."""
        return LongestRow(origin.file, origin.line, tokens) if tokens > self.tokens else self


NO_ROW = LongestRow("", 0, 0)


@dataclass(frozen=True)
class SplitCounts:
    """Size of one split; tokens are counted after truncation."""

    rows: int
    tokens: int
    label_tokens: int


@dataclass(frozen=True)
class Replayed:
    """Rows of data.replay: trained on with the task's rows, in a file of their own, in no split."""

    source: str
    ratio: float
    wanted: int
    """Rows that this ratio asks for; `rows` is smaller where the source has fewer."""
    rows: int
    tokens: int
    label_tokens: int
    rows_read: int
    """All rows of the source; the counts below are of drawn rows only."""
    rejected: int
    """Rows that cannot be read or rendered."""
    duplicates: int
    held_out: int
    """Left out because a held-out row of the task has the same question."""
    too_long: int
    """Conversations longer than data.max_length; others are drawn instead."""
    texts_cut: int
    """Plain texts cut to their first data.max_length tokens."""
    tokens_cut: int


@dataclass(frozen=True)
class Dataset:
    """Prepared rows, as `prepared.json` in the data folder describes them.

    `fingerprint` covers the data files, the template, the tokenizer and the recipe keys that shape
    tokens; not the hardware and not the plan.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    fingerprint: str
    model: str
    """Folder or hub id of the tokenizer."""
    train_source: str
    max_length: int
    rows_read: int
    rows_rejected: int
    duplicates: int
    overlap: int
    """Held-out rows whose prompt is in another split too."""
    train: SplitCounts
    validation: SplitCounts
    test: SplitCounts
    answer_tokens: int
    answer_tokens_lost: int
    longest: LongestRow
    """Of all rows, replayed ones included."""
    system: str | None
    """data.system as a template: a column's name is written `{column}`."""
    plain_text: bool
    """Rows are plain texts without turns."""
    stop_ids: tuple[int, ...]
    pad_id: int
    rejected: tuple[RejectedRow, ...]
    """The first MOST_REJECTED of them (`read_rejected`)."""
    rows_cut: int = 0
    """Rows used although data.max_length cut the end of their answer."""
    cut: tuple[RejectedRow, ...] = ()
    """The first MOST_REJECTED of them."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """A digest of each part of the fingerprint (`fingerprint_parts`)."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each split's file as it was written."""
    replay: Replayed | None = None
    empty_columns: Mapping[str, int] = field(default_factory=dict)
    """Column that data.prompt or data.completion is filled from → rows without a value in it."""
    shared_tokens: int = 0
    """Tokens that a training row usually shares with others of its step."""
    common_tokens: int = 0
    """Length of the prefix that all training rows share; 0 if too short to be computed once."""

    @property
    def epoch_counts(self) -> SplitCounts:
        """Size of an epoch: the task's training rows and the replayed rows."""
        task, replay = self.train, self.replay
        if replay is None:
            return task
        return SplitCounts(
            task.rows + replay.rows,
            task.tokens + replay.tokens,
            task.label_tokens + replay.label_tokens,
        )

    @property
    def row_files(self) -> tuple[RowsOf, ...]:
        """The row files of this dataset."""
        return SPLITS if self.replay is None else ROW_FILES

    @property
    def rows_accepted(self) -> int:
        """Rows used in any split: read = accepted + rejected + duplicates."""
        return self.train.rows + self.validation.rows + self.test.rows

    def counts(self, split: Split) -> SplitCounts:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


def split_file(folder: Path, split: RowsOf) -> Path:
    """Arrow file of one split, or of the replayed rows."""
    return folder / f"{split}.arrow"


def split_digests(folder: Path) -> dict[str, str]:
    """sha256 of each row file; about a second per GB."""
    files = {name: split_file(folder, name) for name in ROW_FILES}
    return {name: sha256_file(file) for name, file in files.items() if file.is_file()}


def damaged_files(
    dataset: Dataset, folder: Path, splits: Iterable[RowsOf] | None = None
) -> dict[Path, str]:
    """Files of these splits that have changed since they were written, each with what is wrong.

    A file without a digest only has to exist.
    """
    found: dict[Path, str] = {}
    for split in dataset.row_files if splits is None else splits:
        file, digest = split_file(folder, split), dataset.digests.get(split)
        if not file.is_file():
            found[file] = "is gone"
        elif digest is not None and sha256_file(file) != digest:
            found[file] = "not as ftcli prepare wrote it (its sha256 differs)"
    return found


def rejected_file(folder: Path) -> Path:
    """JSON lines of the rejected rows; absent if there are none."""
    return folder / "rejected.jsonl"


def read_rejected(dataset: Dataset, folder: Path) -> Iterator[RejectedRow]:
    """Every rejected row; if the file is gone, those in prepared.json."""
    file = rejected_file(folder)
    if not file.is_file():
        yield from dataset.rejected
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            found = json.loads(line)
            yield RejectedRow(Origin(found["file"], found["line"]), found["reason"])


class RejectedRows:
    """Collects rejected rows: their number and the first ones here, all of them in a file."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.first: list[RejectedRow] = []
        self.count = 0
        self._file = file

    def add(self, origin: Origin, reason: str) -> None:
        self.count += 1
        # A row may contain lone surrogates, which cannot be written.
        written = reason[:LONGEST_REASON].encode("utf-8", "backslashreplace").decode()
        row = RejectedRow(origin, written)
        if len(self.first) < MOST_REJECTED:
            self.first.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row.record(), ensure_ascii=False) + "\n")


@contextmanager
def rejected_rows(folder: Path) -> Iterator[RejectedRows]:
    """Write rejected rows to rejected.jsonl; without any, no file is left."""
    file = rejected_file(folder)
    with file.open("w", encoding="utf-8") as lines:
        rows = RejectedRows(lines)
        yield rows
    if not rows.count:
        file.unlink()


def row_lengths(folder: Path, split: RowsOf) -> list[int]:
    """Tokens of each row of one split, without reading the rows; empty if the file is gone."""
    file = split_file(folder, split)
    if not file.is_file():
        return []
    import pyarrow as pa
    import pyarrow.compute as pc

    with pa.memory_map(str(file)) as source:
        ids = pa.ipc.open_stream(source).read_all().column("input_ids")
        lengths: list[int] = pc.list_value_length(ids).to_pylist()
    return lengths


def row_batches(folder: Path, split: RowsOf) -> Iterator[Any]:
    """Arrow record batches of one split, one at a time; raises pyarrow.ArrowInvalid."""
    import pyarrow as pa

    # Not memory-mapped: a map of the whole file counts as memory of the process.
    with pa.OSFile(str(split_file(folder, split))) as source:
        yield from pa.ipc.open_stream(source)


def read_turns(messages: str) -> tuple[Message, ...]:
    """The turns of a prepared row, stored as JSON; empty for a plain text."""
    return tuple(Message(*turn) for turn in json.loads(messages))


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """Write `prepared.json`. It is written last: its presence means that all rows are there."""
    write_json(folder / "prepared.json", dataclasses.asdict(dataset))


def load_dataset(folder: Path) -> Dataset | None:
    """The dataset in a folder, if any; raises FtcliError if it cannot be read."""
    file = folder / "prepared.json"
    if not file.is_file():
        return None
    try:
        return TypeAdapter(Dataset).validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FtcliError(
            "prepared_broken",
            f"cannot be read ({place}: {first['msg']}); delete it and prepare again",
            file=str(file),
        ) from error
