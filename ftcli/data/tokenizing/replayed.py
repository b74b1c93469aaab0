"""Draw rows to replay until there are enough, within `data.max_length`, and count them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import replace

from ftcli.config.data import BUILTIN
from ftcli.console import Reporter
from ftcli.data.dataset import NO_ROW, Replayed
from ftcli.data.example import Example, RejectedRow
from ftcli.data.replay import ReplaySource
from ftcli.data.tokenizing.rendering import Encoded, Item, Renderer, encode_items
from ftcli.errors import DataError
from ftcli.shell import shown_source

# More rows are read ahead than probably needed: too few mean one more pass over the source.
MARGIN, LEAST_AHEAD = 1.2, 16
# Tokens of rows that are read ahead, 70 bytes each.
MOST_TOKENS_AHEAD = 1_000_000

Drawn = RejectedRow | tuple[Example, Encoded | None, int]
"""A row as it would be replayed (None: too long), and how many of its tokens are cut."""


def rows_wanted(ratio: float, task_rows: int) -> int:
    """Rows to replay for this share of all rows: ratio 0.15 and 1,000 task rows give 176."""
    return max(1, round(task_rows * ratio / (1 - ratio)))


class ReplaySampler:
    """Draws the wanted number of rows of a source, none twice, and counts them."""

    def __init__(self, source: ReplaySource, wanted: int, max_length: int) -> None:
        self.source, self.max_length = source, max_length
        self.longest = NO_ROW
        self.counts = Replayed(
            source=source.replay.source,
            ratio=source.replay.ratio,
            wanted=wanted,
            rows=0,
            tokens=0,
            label_tokens=0,
            rows_read=source.rows_read,
            rejected=source.rejected,
            duplicates=source.duplicates,
            held_out=source.held_out,
            too_long=0,
            texts_cut=0,
            tokens_cut=0,
        )
        self._first_reason = str(source.first_rejected or "")

    def draw(self, renderer: Renderer) -> Iterator[tuple[Example, Encoded]]:
        """The drawn rows; for each one left out, the next is drawn.

        Raises DataError (`data_empty`) if none can be used.
        """
        order, place, wanted = self.source.order, 0, self.counts.wanted
        while place < len(order) and self.counts.rows < wanted:
            numbers = order[place : place + self._rows_to_read(place)]
            found = self._read(set(numbers), renderer)
            if place:  # more are read than needed: take them in sampling order
                by_number = dict(found)
                found = ((n, by_number[n]) for n in numbers if n in by_number)
            for _, item in found:
                if self.counts.rows < wanted and (row := self._take(item)) is not None:
                    yield row
            place += len(numbers)
        if not self.counts.rows:
            raise self._nothing()

    def _rows_to_read(self, drawn: int) -> int:
        """Rows to encode in the next pass: those missing, and after the first pass some more."""
        rows, missing = self.counts.rows, self.counts.wanted - self.counts.rows
        if not drawn:
            return missing
        probable = math.ceil(missing * drawn / max(rows, 1) * MARGIN) + LEAST_AHEAD
        return max(1, min(probable, MOST_TOKENS_AHEAD // self.max_length))

    def _read(self, numbers: Set[int], renderer: Renderer) -> Iterator[tuple[int, Drawn]]:
        """Rows of the source by their numbers, in the order of the file."""
        items: Iterator[Item] = ((row, "train") for row in self.source.rows(numbers))
        # Not strict: a source that has changed since may have fewer; that is detected at the end.
        for number, item in zip(sorted(numbers), encode_items(items, renderer), strict=False):
            yield number, item if isinstance(item, RejectedRow) else self._cut(item[0], item[2])

    def _cut(self, example: Example, whole: Encoded) -> Drawn:
        """The row within `max_length`: a text is cut, a longer conversation is left out.

        A truncated answer would teach the model not to end it.
        """
        limit = self.max_length
        beyond = max(len(whole.input_ids) - limit, 0)
        if beyond and example.text is None:
            return example, None, beyond
        return example, whole.first(limit), beyond

    def _take(self, item: Drawn) -> tuple[Example, Encoded] | None:
        """The drawn row, or None if it is left out; counts both."""
        if isinstance(item, RejectedRow):
            self._count(rejected=1)
            self._first_reason = self._first_reason or str(item)
            return None
        example, row, beyond = item
        if row is None:
            self._count(too_long=1)
            reason = f"{example.origin} is longer than {self.max_length} tokens"
            self._first_reason = self._first_reason or reason
            return None
        tokens = len(row.input_ids)
        self._count(rows=1, tokens=tokens, label_tokens=row.label_tokens)
        self._count(texts_cut=int(beyond > 0), tokens_cut=beyond)
        self.longest = self.longest.or_longer(example.origin, tokens)
        return example, row

    def _count(self, **more: int) -> None:
        sums = {name: getattr(self.counts, name) + number for name, number in more.items()}
        self.counts = replace(self.counts, **sums)

    def _nothing(self) -> DataError:
        found = self.counts
        parts = {
            "unreadable": found.rejected,
            "too long": found.too_long,
            "with the question of a held-out row": found.held_out,
        }
        counted = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
        first = f"; {self._first_reason}" if self._first_reason else ""
        return DataError(
            "data_empty",
            f"data.replay: none of {found.rows_read} rows can be replayed"
            f"{f' ({counted})' if counted else ''}{first}",
            file=found.source,
        )


def warn_of_few_rows(found: Replayed, task_rows: int, reporter: Reporter) -> None:
    """Warn if the user's source has fewer rows than the ratio asks for."""
    if found.rows < found.wanted and found.source != BUILTIN:
        share = found.rows / (found.rows + task_rows)
        reporter.warn(
            f"data.replay: {shown_source(found.source)} has {found.rows:,} rows to replay, and "
            f"ratio {found.ratio:g} asks for {found.wanted:,}: all are taken, once each "
            f"({share:.1%} of the rows); name a larger source, or lower data.replay.ratio"
        )
