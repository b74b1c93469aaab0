"""Examples → cleaned, split, tokenised Arrow files: the one preparation that all else reads.

Two passes over the data keep memory small: the first remembers 32 bytes a row to find duplicates
and decide the splits (24 of a row that may be replayed), the second renders, encodes and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftcli.config.recipe import Data, Recipe
from ftcli.console import Reporter, shown_path
from ftcli.data.dataset import (
    NO_ROW,
    SPLITS,
    TRUNCATION_BUDGET,
    Assigned,
    Dataset,
    LongestRow,
    RejectedRows,
    Replayed,
    SplitCounts,
    damaged_files,
    load_dataset,
    rejected_rows,
    save_dataset,
    split_digests,
    split_file,
)
from ftcli.data.example import Example, RejectedRow
from ftcli.data.replay import Drawing, ReplayDraw, rows_wanted, warn_of_few_rows
from ftcli.data.sources import read_examples
from ftcli.data.splits import (
    Progress,
    SplitRows,
    files_of,
    find_splits,
    source_digests,
    sources_of,
)
from ftcli.data.tokenizing.arrow_rows import RowWriter, first_rows, record
from ftcli.data.tokenizing.fingerprint import fingerprint_inputs, fingerprint_of, fingerprint_parts
from ftcli.data.tokenizing.prefix_tree import SHARED_TOKENS, common_tokens, typical_common_prefix
from ftcli.data.tokenizing.rendering import IGNORED, Encoded, Item, Renderer, encode_items
from ftcli.errors import DataError, FtcliError
from ftcli.runs.atomic import atomic_directory

PARALLEL = "TOKENIZERS_PARALLELISM"
# Training rows that show how much rows have in common.
ROWS_COMPARED = 256
# How many rows are named in a message.
NAMED = 5


def prepare(recipe: Recipe, renderer: Renderer, folder: Path, reporter: Reporter) -> Dataset:
    """Tokenise the recipe's data into `folder`, or find them there with the same fingerprint.

    Rows that are found are proven by the sha256 of their files. Says what is unusual about the
    template, and which files are prepared again. Raises DataError: nothing to train on, train/test
    overlap, or too many answer tokens truncated.
    """
    data = recipe.data
    parts = fingerprint_inputs(recipe, renderer)
    fingerprint = fingerprint_of(parts)
    if renderer.note is not None:
        reporter.note(renderer.note)
    earlier = _earlier(folder, fingerprint, reporter)
    if earlier is not None and _is_whole(earlier, folder, reporter):
        _report(earlier, reporter)
        return earlier
    split_rows = find_splits(data, recipe.training.seed, reporter)
    with atomic_directory(folder) as temporary:
        counts = _write_rows(split_rows, renderer, temporary, reporter)
        now = source_digests(data)
        for role, file in files_of(data).items():
            if now[role] != parts["files"][role]:
                raise _changed(file)
        dataset = _dataset(recipe, fingerprint, split_rows, counts, renderer)
        _require_rows(dataset, data)
        _require_answers(dataset, data, counts.longest)
        rows = [row["input_ids"] for row in first_rows(temporary, "train", ROWS_COMPARED)]
        dataset = replace(
            dataset, digests=split_digests(temporary), shared_tokens=typical_common_prefix(rows)
        )
        save_dataset(dataset, temporary)
    if earlier is not None and earlier.digests not in ({}, dataset.digests):
        reporter.warn(
            "the rows prepared anew have another sha256 than those of before, from the same "
            "sources: another version of tokenizers or pyarrow, or a changed prepared.json"
        )
    _report(dataset, reporter)
    return dataset


def _earlier(folder: Path, fingerprint: str, reporter: Reporter) -> Dataset | None:
    """What was prepared here from the same sources."""
    try:
        earlier = load_dataset(folder)
    except FtcliError as error:
        reporter.warn(f"{error.file}: cannot be read; the rows are prepared anew")
        return None
    return earlier if earlier is not None and earlier.fingerprint == fingerprint else None


def _is_whole(earlier: Dataset, folder: Path, reporter: Reporter) -> bool:
    """Whether the rows are still as they were written; says of each file what is not."""
    damaged = damaged_files(earlier, folder)
    for file, what in damaged.items():
        reporter.warn(f"{shown_path(file)}: {what}; the rows are prepared anew")
    if not damaged and not earlier.digests:
        reporter.note(f"note: {shown_path(folder)} holds no sha256 of its rows: prepared anew")
    return not damaged and bool(earlier.digests)


def _dataset(
    recipe: Recipe, fingerprint: str, rows: SplitRows, counts: Counts, renderer: Renderer
) -> Dataset:
    common = len(counts.common or ())
    return Dataset(
        fingerprint=fingerprint,
        model=renderer.tokenizer.name_or_path,
        train_source=recipe.data.train,
        max_length=recipe.data.max_length,
        rows_read=rows.rows_read,
        rows_rejected=counts.rejected.count,
        duplicates=rows.duplicates,
        overlap=rows.overlap,
        train=counts.of("train"),
        validation=counts.of("validation"),
        test=counts.of("test"),
        answer_tokens=counts.answer_tokens,
        answer_tokens_lost=counts.lost,
        longest=max(counts.longest, counts.longest_replayed, key=lambda row: row.tokens),
        system=rows.data.system,
        plain_text=counts.plain_text,
        stop_ids=renderer.stop_ids,
        pad_id=renderer.pad_id,
        rejected=tuple(counts.rejected.first),
        rows_cut=counts.cut.count,
        cut=tuple(counts.cut.first),
        parts=fingerprint_parts(recipe, renderer),
        replay=counts.replayed,
        common_tokens=common if common >= SHARED_TOKENS else 0,
    )


def _require_rows(dataset: Dataset, data: Data) -> None:
    if dataset.train.rows:
        return
    if not dataset.rows_read:
        raise DataError("data_empty", "holds no rows", file=data.train)
    first = {fault.reason: fault for fault in reversed(dataset.rejected)}  # of each reason
    reasons = ", ".join(map(str, list(reversed(first.values()))[:NAMED]))
    raise DataError(
        "data_empty",
        f"none of {dataset.rows_read} rows can be trained on: {reasons}",
        file=data.train,
    )


def _require_answers(dataset: Dataset, data: Data, longest: LongestRow) -> None:
    share = dataset.answer_tokens_lost / max(dataset.answer_tokens, 1)
    if share > TRUNCATION_BUDGET and data.too_long == "error":
        raise DataError(
            "truncation",
            f"data.max_length {data.max_length} cuts {dataset.answer_tokens_lost} of "
            f"{dataset.answer_tokens} answer tokens ({share:.1%}){_rows_cut(dataset)}; raise it, "
            "or set data.too_long: truncate or drop",
            file=longest.file,
            line=longest.line,
        )


def _rows_cut(dataset: Dataset) -> str:
    """`, the ends of 7 answers: rows.jsonl:4, …`, or nothing."""
    if not dataset.rows_cut:
        return ""
    named = ", ".join(str(row.origin) for row in dataset.cut[:NAMED])
    more = ", …" if dataset.rows_cut > NAMED else ""
    return f", the ends of {dataset.rows_cut} answers: {named}{more}"


def _report(dataset: Dataset, reporter: Reporter) -> None:
    """What is to be known of the rows, whenever they were prepared."""
    if dataset.replay is not None:
        warn_of_few_rows(dataset.replay, dataset.train.rows, reporter)
    if dataset.rows_cut:
        reporter.note(
            f"note: data.max_length {dataset.max_length} cuts {dataset.answer_tokens_lost} "
            f"answer tokens{_rows_cut(dataset)}"
        )


# The second pass


@dataclass
class Counts:
    """Running counts of the rows that were taken, and those that were not."""

    max_length: int
    drop: bool
    """Rows whose answer is cut are rejected (data.too_long)."""
    rejected: RejectedRows = field(default_factory=RejectedRows)
    cut: RejectedRows = field(default_factory=RejectedRows)
    """Rows that were taken without a part of what is trained on."""
    controlled: RejectedRows = field(default_factory=RejectedRows)
    """Plain texts with control tokens in them, which are taken."""
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    answer_tokens: int = 0
    lost: int = 0
    longest: LongestRow = NO_ROW
    plain_text: bool = False
    replayed: Replayed | None = None
    longest_replayed: LongestRow = NO_ROW
    common: list[int] | None = None
    """What all rows that are trained on begin with; None before the first of them."""

    def take(self, example: Example, split: Assigned, whole: Encoded) -> Encoded | None:
        """The row within `max_length`; nothing when all that is trained on would be cut."""
        limit, row = self.max_length, whole.first(self.max_length)
        trained, wanted = row.label_tokens, whole.label_tokens
        if self.drop and trained < wanted:
            reason = f"{len(whole.input_ids)} tokens, and max_length is {limit} (too_long: drop)"
            self.rejected.add(example.origin, reason)
            return None
        self.answer_tokens += wanted
        self.lost += wanted - trained
        if trained == 0:
            reason = (
                f"answer fully truncated at {limit} tokens (the row has {len(whole.input_ids)})"
            )
            self.rejected.add(example.origin, reason)
            return None
        if trained < wanted:
            reason = f"answer truncated at {limit} tokens: {wanted - trained} of {wanted} lost"
            self.cut.add(example.origin, reason)
        tokens, before = len(row.input_ids), self.of(split)
        self.splits[split] = SplitCounts(
            before.rows + 1, before.tokens + tokens, before.label_tokens + trained
        )
        self.plain_text = example.text is not None
        self.longest = self.longest.or_longer(example.origin, tokens)
        if split == "train":
            self.compare(row)
        return row

    def compare(self, row: Encoded) -> None:
        """Take note of what a row that is trained on begins with."""
        common = row.input_ids if self.common is None else self.common
        if row.input_ids[: len(common)] != common:
            common = common[: common_tokens(common, row.input_ids)]
        self.common = common

    def note_control_tokens(self, example: Example, row: Encoded, renderer: Renderer) -> None:
        """A plain text has no template, so that nobody knows whose the tokens within it are."""
        ids = row.input_ids[:-1] if example.text is not None else []
        begun = ids[:1] == [renderer.tokenizer.bos_token_id]
        if not renderer.escaping.special.isdisjoint(ids[begun:]):
            self.controlled.add(example.origin, "")

    def of(self, split: Assigned) -> SplitCounts:
        return self.splits.get(split, SplitCounts(0, 0, 0))


def _write_rows(rows: SplitRows, renderer: Renderer, folder: Path, reporter: Reporter) -> Counts:
    """Write the rows of every split, and the rows that were not used, into `folder`.

    Raises DataError (`data_changed`) where the files do not hold what the first pass has seen.
    """
    with ExitStack() as stack:
        stack.enter_context(all_cores())
        total = rows.rows_read - rows.duplicates
        progress = Progress(stack.enter_context(reporter.meter("prepare", total)), total)
        data = rows.data
        rejected = stack.enter_context(rejected_rows(folder))
        counts = Counts(data.max_length, data.too_long == "drop", rejected)
        writers: dict[Assigned, RowWriter] = {
            name: stack.enter_context(RowWriter(split_file(folder, name))) for name in SPLITS
        }
        for item in encode_items(_items(rows), renderer):
            progress.step()
            if isinstance(item, RejectedRow):
                counts.rejected.add(item.origin, item.reason)
                continue
            example, split, whole = item
            row = counts.take(example, split, whole)
            if row is not None:
                writers[split].write(row, example)
                counts.note_control_tokens(example, row, renderer)
        if rows.replay is not None:
            writer = stack.enter_context(RowWriter(split_file(folder, "replay")))
            _replay(rows.replay, counts, renderer, writer)
    if counts.controlled.count:
        reporter.warn(
            f"{counts.controlled.count} plain texts hold control tokens, first "
            f"{counts.controlled.first[0].origin}, and are trained on as they are written; where "
            "these are a user's own words, give the rows as prompt and completion, in which they "
            "stay text"
        )
    return counts


def _replay(drawing: Drawing, counts: Counts, renderer: Renderer, writer: RowWriter) -> None:
    """Write the rows that are replayed; the number of the task's decides theirs."""
    task_rows = counts.of("train").rows
    if not task_rows:
        return
    wanted = rows_wanted(drawing.replay.ratio, task_rows)
    draw = ReplayDraw(drawing, wanted, counts.max_length)
    for example, row in draw.draw(renderer):
        writer.write(row, example)
        counts.compare(row)
        counts.note_control_tokens(example, row, renderer)
    counts.replayed, counts.longest_replayed = draw.counts, draw.longest


@contextmanager
def all_cores() -> Iterator[None]:
    """Let the tokenizer use them within; it reads the variable at each call.

    Elsewhere it does not (ftcli.environment), so that a process can be forked without a warning.
    """
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "true"
    try:
        yield
    finally:
        os.environ[PARALLEL] = before or "false"


def _items(rows: SplitRows) -> Iterator[Item]:
    """Readable rows with their splits, without duplicates; what could not be read, as it is."""
    for source, file in sources_of(rows.data).items():
        index, known = 0, len(rows.assignments[source].codes)
        for item in read_examples(file, rows.data):
            if isinstance(item, RejectedRow):
                yield item
            elif index == known:
                raise _changed(file)
            else:
                split = rows.split(source, index)
                index += 1
                if split != "duplicate":
                    yield item, split
        if index != known:
            raise _changed(file)


def _changed(file: str) -> DataError:
    """A file that is written to while it is read."""
    return DataError("data_changed", "has changed while it was read; begin again", file=file)


# Other rows, and what the rows look like


def encode_file(
    source: str, recipe: Recipe, renderer: Renderer, system: str | None, reporter: Reporter
) -> list[dict[str, Any]]:
    """Rows of a further file, rendered as the run's own; says which are left out.

    `system`: data.system of the run, as a template where it names a column.
    Raises DataError when none can be used.
    """
    data = recipe.data.model_copy(update={"system": system})
    items: Iterator[Item] = (
        item if isinstance(item, RejectedRow) else (item, "train")
        for item in read_examples(source, data)
    )
    rows, counts = [], Counts(data.max_length, data.too_long == "drop")
    for item in encode_items(items, renderer):
        if isinstance(item, RejectedRow):
            counts.rejected.add(item.origin, item.reason)
        elif (row := counts.take(*item)) is not None:
            rows.append(record(row, item[0]))
    rejected = counts.rejected
    if not rows and rejected.count:
        raise DataError("data_empty", f"no row can be used: {rejected.first[0]}", file=source)
    if rejected.count:
        named = " · ".join(map(str, rejected.first[:NAMED]))
        more = " · …" if rejected.count > NAMED else ""
        reporter.warn(f"{rejected.count} rows are left out: {named}{more}")
    return rows


def preview(folder: Path, renderer: Renderer, count: int) -> Iterator[list[tuple[str, bool]]]:
    """The first training rows as pieces of text, each with whether it is trained on."""
    for row in first_rows(folder, "train", count):
        yield pieces(renderer, Encoded(row["input_ids"], row["labels"], row["prompt_tokens"]))


def pieces(renderer: Renderer, row: Encoded) -> list[tuple[str, bool]]:
    """Decoded runs of tokens that are alike in being trained on or not."""
    runs: list[tuple[list[int], bool]] = []
    for id_, label in zip(row.input_ids, row.labels, strict=True):
        trained = label != IGNORED
        if not runs or runs[-1][1] != trained:
            runs.append(([], trained))
        runs[-1][0].append(id_)
    return [(str(renderer.tokenizer.decode(ids)), trained) for ids, trained in runs]
