"""The second pass over the data: each row rendered, cut to length, counted and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ftcli.console import Reporter
from ftcli.data.example import Example, Origin
from ftcli.data.prepared import SPLITS, LongestRow, Problems, Replayed, SplitCounts, split_file
from ftcli.data.reading import read_examples
from ftcli.data.replay import Drawing
from ftcli.data.row import Reject
from ftcli.data.sides import Progress, Sides, sources_of
from ftcli.data.split import Side
from ftcli.data.tokenizing.bulk import Item, encode_items
from ftcli.data.tokenizing.packing import common_tokens
from ftcli.data.tokenizing.rendering import Encoded, Renderer
from ftcli.data.tokenizing.replay_rows import NO_ROW, replay_beside
from ftcli.data.tokenizing.rows import RowWriter
from ftcli.errors import DataError

PARALLEL = "TOKENIZERS_PARALLELISM"


@dataclass
class Tally:
    """Running counts of the rows that were taken, and those that were not."""

    max_length: int
    problems: Problems = field(default_factory=Problems)
    cut: Problems = field(default_factory=Problems)
    """Rows that were taken without a part of what is trained on."""
    counts: dict[str, list[int]] = field(default_factory=dict)
    """Rows, tokens and trained tokens of each side."""
    answer_tokens: int = 0
    lost: int = 0
    longest: LongestRow = NO_ROW
    plain_text: bool = False
    controlled: Problems = field(default_factory=Problems)
    """Plain texts with control tokens in them."""
    replayed: Replayed | None = None
    longest_replayed: LongestRow = NO_ROW
    common: list[int] | None = None
    """What all rows that are trained on begin with; None before the first of them."""

    def reject(self, origin: Origin, reason: str) -> None:
        self.problems.add(origin.file, origin.line, reason)

    def take(self, example: Example, side: Side, whole: Encoded) -> Encoded | None:
        """The row within `max_length`; nothing when all that is trained on would be cut."""
        row, limit = whole, self.max_length
        if len(whole.input_ids) > limit:
            row = Encoded(whole.input_ids[:limit], whole.labels[:limit], whole.prompt_tokens)
        trained, wanted = row.trained_tokens, whole.trained_tokens
        self.answer_tokens += wanted
        self.lost += wanted - trained
        if trained == 0:
            reason = f"answer cut wholly at {limit} tokens (the row has {len(whole.input_ids)})"
            self.reject(example.origin, reason)
            return None
        if trained < wanted:
            reason = f"answer cut at {limit} tokens: {wanted - trained} of {wanted} lost"
            self.cut.add(example.origin.file, example.origin.line, reason)
        tokens, before = len(row.input_ids), self.counts.get(side, [0, 0, 0])
        self.counts[side] = [before[0] + 1, before[1] + tokens, before[2] + trained]
        self.plain_text = example.text is not None
        if tokens > self.longest.tokens:
            self.longest = LongestRow(example.origin.file, example.origin.line, tokens)
        if side == "train":
            self.compare(row)
        return row

    def compare(self, row: Encoded) -> None:
        """Take note of what a row that is trained on begins with."""
        common = row.input_ids if self.common is None else self.common
        if row.input_ids[: len(common)] != common:
            common = common[: common_tokens(common, row.input_ids)]
        self.common = common

    def look_for_controls(self, example: Example, row: Encoded, renderer: Renderer) -> None:
        """A plain text has no template, so that nobody knows whose the tokens within it are."""
        ids = row.input_ids[:-1] if example.text is not None else []
        begun = ids[:1] == [renderer.tokenizer.bos_token_id]
        if not renderer.speller.special.isdisjoint(ids[begun:]):
            self.controlled.add(example.origin.file, example.origin.line, "")

    def of(self, side: Side) -> SplitCounts:
        return SplitCounts(*self.counts.get(side, (0, 0, 0)))


def tokenise(
    sides: Sides, base: Path, renderer: Renderer, folder: Path, reporter: Reporter
) -> Tally:
    """Write the rows of every side, and the rows that were not used, into `folder`.

    Raises DataError (`data_changed`) where the files do not hold what the first pass has seen.
    """
    with ExitStack() as stack:
        stack.enter_context(all_cores())
        total = sides.rows_read - sides.duplicates
        progress = Progress(stack.enter_context(reporter.meter("prepare", total)), total)
        problems = stack.enter_context(Problems(folder))
        writers: dict[Side, RowWriter] = {
            split: stack.enter_context(RowWriter(split_file(folder, split))) for split in SPLITS
        }
        tally = Tally(sides.data.max_length, problems)
        for item in encode_items(_items(sides, base), renderer):
            progress.step()
            if isinstance(item, Reject):
                tally.reject(item.origin, item.reason)
                continue
            example, side, whole = item
            row = tally.take(example, side, whole)
            if row is not None:
                writers[side].write(row, example)
                tally.look_for_controls(example, row, renderer)
        if sides.replay is not None:
            writer = stack.enter_context(RowWriter(split_file(folder, "replay")))
            _replay(sides.replay, tally, renderer, writer)
    _tell_controls(tally.controlled, reporter)
    return tally


def _replay(drawing: Drawing, tally: Tally, renderer: Renderer, writer: RowWriter) -> None:
    """Write the rows that are replayed; the number of the task's decides theirs."""
    task_rows = tally.of("train").rows
    if not task_rows:
        return
    replay = replay_beside(task_rows, drawing, tally.max_length)
    for example, row in replay.drawn(renderer):
        writer.write(row, example)
        tally.compare(row)
        tally.look_for_controls(example, row, renderer)
    tally.replayed, tally.longest_replayed = replay.counts(), replay.longest


def _tell_controls(found: Problems, reporter: Reporter) -> None:
    if found.count:
        first = found.first[0]
        reporter.warn(
            f"{found.count} plain texts hold control tokens, first {first.file}:{first.line}, and "
            "are trained on as they are written; where these are a user's own words, give the rows "
            "as prompt and completion, in which they stay text"
        )


@contextmanager
def all_cores() -> Iterator[None]:
    """Let the tokenizer use them within; it reads the variable at each call.

    Elsewhere it does not (ftcli.environment), so that a process can be forked without advice.
    """
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "true"
    try:
        yield
    finally:
        os.environ[PARALLEL] = before or "false"


def _items(sides: Sides, base: Path) -> Iterator[Item]:
    """Readable rows with their sides, but for duplicates; what could not be read, as it is."""
    for source, file in sources_of(sides.data).items():
        index, known = 0, len(sides.splits[source].codes)
        for item in read_examples(file, sides.data, base):
            if isinstance(item, Reject):
                yield item
            elif index == known:
                raise changed(file)
            else:
                side = sides.side(source, index)
                index += 1
                if side != "duplicate":
                    yield item, side
        if index != known:
            raise changed(file)


def changed(file: str) -> DataError:
    """What to say of a file that is written to while it is read."""
    return DataError("data_changed", "has changed while it was read; begin again", file=file)
