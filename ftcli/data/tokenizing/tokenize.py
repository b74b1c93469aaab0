"""Examples → cleaned, split, tokenised Arrow files, read by every other command.

Two passes over the data keep memory small: the first keeps 32 bytes per row to find duplicates and
assign splits (24 per row that may be replayed); the second renders, encodes and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftcli.config.recipe import Data, Recipe
from ftcli.console import Reporter, counted, shown_path
from ftcli.data.dataset import (
    SPLITS,
    TRUNCATION_BUDGET,
    Assigned,
    Dataset,
    LongestRow,
    damaged_files,
    load_dataset,
    rejected_rows,
    save_dataset,
    split_digests,
    split_file,
)
from ftcli.data.example import RejectedRow
from ftcli.data.replay import ReplaySource
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
from ftcli.data.tokenizing.counts import Counts
from ftcli.data.tokenizing.fingerprint import fingerprint_inputs, fingerprint_of, fingerprint_parts
from ftcli.data.tokenizing.prefix_tree import SHARED_TOKENS, typical_common_prefix
from ftcli.data.tokenizing.rendering import IGNORED, Encoded, Item, Renderer, encode_items
from ftcli.data.tokenizing.replayed import ReplaySampler, rows_wanted, warn_of_few_rows
from ftcli.errors import DataError, FtcliError
from ftcli.runs.atomic import atomic_directory

PARALLEL = "TOKENIZERS_PARALLELISM"
# Training rows compared for common prefixes.
ROWS_COMPARED = 256
# Rows named in a message.
NAMED = 5


def prepare(recipe: Recipe, renderer: Renderer, folder: Path, reporter: Reporter) -> Dataset:
    """Tokenise the recipe's data into `folder`, unless they are there with the same fingerprint.

    Rows found there are verified by the sha256 of their files, and prepared again if damaged.
    Raises DataError: nothing to train on, train/test overlap, or too many answer tokens truncated.
    """
    data = recipe.data
    parts = fingerprint_inputs(recipe, renderer)
    fingerprint = fingerprint_of(parts)
    if renderer.note is not None:
        reporter.note(renderer.note)
    earlier = _earlier(folder, fingerprint, reporter)
    if earlier is not None and _is_intact(earlier, folder, reporter):
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
            "the sha256 of the rows differs from before, although the sources are the same: "
            "another version of tokenizers or pyarrow, or a changed prepared.json"
        )
    _report(dataset, reporter)
    return dataset


def _earlier(folder: Path, fingerprint: str, reporter: Reporter) -> Dataset | None:
    """The dataset in `folder`, if it has this fingerprint."""
    try:
        earlier = load_dataset(folder)
    except FtcliError as error:
        reporter.warn(f"{error.file}: cannot be read; the rows are prepared again")
        return None
    return earlier if earlier is not None and earlier.fingerprint == fingerprint else None


def _is_intact(earlier: Dataset, folder: Path, reporter: Reporter) -> bool:
    """Whether the row files are as they were written; warns of each that is not."""
    damaged = damaged_files(earlier, folder)
    for file, what in damaged.items():
        reporter.warn(f"{shown_path(file)}: {what}; the rows are prepared again")
    if not damaged and not earlier.digests:
        reporter.note(
            f"note: {shown_path(folder)} has no sha256 of its rows; they are prepared again"
        )
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
        empty_columns=dict(counts.empty_columns),
        common_tokens=common if common >= SHARED_TOKENS else 0,
    )


def _require_rows(dataset: Dataset, data: Data) -> None:
    if dataset.train.rows:
        return
    if not dataset.rows_read:
        raise DataError("data_empty", "holds no rows", file=data.train)
    first = {row.reason: row for row in reversed(dataset.rejected)}  # of each reason
    reasons = ", ".join(map(str, list(reversed(first.values()))[:NAMED]))
    raise DataError(
        "data_empty",
        f"none of {dataset.rows_read} rows can be used: {reasons}",
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
    """`, in 7 rows: rows.jsonl:4, …`, or nothing."""
    if not dataset.rows_cut:
        return ""
    named = ", ".join(str(row.origin) for row in dataset.cut[:NAMED])
    more = ", …" if dataset.rows_cut > NAMED else ""
    return f", in {counted(dataset.rows_cut, 'row')}: {named}{more}"


def _report(dataset: Dataset, reporter: Reporter) -> None:
    """Notes on the rows, shown each time they are used."""
    if dataset.replay is not None:
        warn_of_few_rows(dataset.replay, dataset.train.rows, reporter)
    if dataset.rows_cut:
        reporter.note(
            f"note: data.max_length {dataset.max_length} cuts {dataset.answer_tokens_lost} "
            f"answer tokens{_rows_cut(dataset)}"
        )


# The second pass


def _write_rows(rows: SplitRows, renderer: Renderer, folder: Path, reporter: Reporter) -> Counts:
    """Write the rows of every split, and the rejected rows, into `folder`.

    Raises DataError (`data_changed`) if a file has changed since the first pass.
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
            f"{counts.controlled.count} plain texts contain control tokens, first "
            f"{counts.controlled.first[0].origin}, and are trained on as they are; if users wrote "
            "them, give the rows as prompt and completion, where they stay text"
        )
    return counts


def _replay(source: ReplaySource, counts: Counts, renderer: Renderer, writer: RowWriter) -> None:
    """Write the replayed rows; their number depends on the task's training rows."""
    task_rows = counts.of("train").rows
    if not task_rows:
        return
    wanted = rows_wanted(source.replay.ratio, task_rows)
    draw = ReplaySampler(source, wanted, counts.max_length)
    for example, row in draw.draw(renderer):
        writer.write(row, example)
        counts.shorten_common(row)
        counts.note_control_tokens(example, row, renderer)
    counts.replayed, counts.longest_replayed = draw.counts, draw.longest


@contextmanager
def all_cores() -> Iterator[None]:
    """Let the tokenizer use all cores within the block; it reads the variable at each call.

    Elsewhere it uses one (ftcli.environment), so that forking a process prints no warning.
    """
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "true"
    try:
        yield
    finally:
        os.environ[PARALLEL] = before or "false"


def _items(rows: SplitRows) -> Iterator[Item]:
    """Readable rows with their splits, without duplicates, and all rejected rows."""
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
    """The error for a file that changed between the two passes."""
    return DataError(
        "data_changed", "has changed while it was read; run the command again", file=file
    )


# Rows of other files, and previews


def encode_file(
    source: str, recipe: Recipe, renderer: Renderer, system: str | None, reporter: Reporter
) -> list[dict[str, Any]]:
    """Rows of another file, prepared like the run's own; warns of rejected rows.

    `system`: data.system of the run, as a template if it names a column.
    Raises DataError if no row can be used.
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
        reporter.warn(f"{counted(rejected.count, 'row')} left out: {named}{more}")
    return rows


def preview(folder: Path, renderer: Renderer, count: int) -> Iterator[list[tuple[str, bool]]]:
    """The first training rows as pieces of text, each with whether it has labels."""
    for row in first_rows(folder, "train", count):
        yield pieces(renderer, Encoded(row["input_ids"], row["labels"], row["prompt_tokens"]))


def pieces(renderer: Renderer, row: Encoded) -> list[tuple[str, bool]]:
    """The decoded row, cut where tokens with and without labels meet."""
    runs: list[tuple[list[int], bool]] = []
    for id_, label in zip(row.input_ids, row.labels, strict=True):
        trained = label != IGNORED
        if not runs or runs[-1][1] != trained:
            runs.append(([], trained))
        runs[-1][0].append(id_)
    return [(str(renderer.tokenizer.decode(ids)), trained) for ids, trained in runs]
