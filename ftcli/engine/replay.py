"""Rows that are replayed beside the task's (data.replay): drawn, rendered, counted on their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ftcli.console import Reporter
from ftcli.data.example import Example
from ftcli.data.replay import Drawing, rows_wanted
from ftcli.data.row import Reject
from ftcli.engine.bulk import Item, encode_items
from ftcli.engine.rendering import Encoded, Renderer
from ftcli.errors import DataError
from ftcli.prepared import LongestRow, Replayed

NO_ROW = LongestRow("", 0, 0)


@dataclass
class Replay:
    """A drawing on its way into the training rows: so many rows are wanted, none of them twice."""

    drawing: Drawing
    wanted: int
    max_length: int
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    rejected: int = 0
    too_long: int = 0
    texts_cut: int = 0
    tokens_cut: int = 0
    longest: LongestRow = NO_ROW
    first_reason: str = ""

    def drawn(self, renderer: Renderer) -> Iterator[tuple[Example, Encoded]]:
        """The rows, in the order of the file; for each that is left out the next one is drawn.

        Raises DataError (`data_empty`) where none can be used.
        """
        waiting = iter(self.drawing.order)
        # The source is read once more for those that take the place of others.
        while chosen := set(islice(waiting, self.wanted - self.rows)):
            items: Iterator[Item] = ((row, "train") for row in self.drawing.rows(chosen))
            for item in encode_items(items, renderer):
                if isinstance(item, Reject):
                    self._reject(f"{item.origin} {item.reason}")
                elif (row := self._take(item[0], item[2])) is not None:
                    yield item[0], row
        if not self.rows:
            raise self._nothing()

    def counts(self) -> Replayed:
        found, replay = self.drawing, self.drawing.replay
        return Replayed(
            source=replay.source,
            share=replay.share,
            wanted=self.wanted,
            rows=self.rows,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            rows_read=found.rows_read,
            rejected=found.rejected + self.rejected,
            duplicates=found.duplicates,
            held_out=found.held_out,
            too_long=self.too_long,
            texts_cut=self.texts_cut,
            tokens_cut=self.tokens_cut,
        )

    def _take(self, example: Example, whole: Encoded) -> Encoded | None:
        """The row within `max_length`: a text's first tokens; a conversation whole, or not at all.

        An answer that is cut would teach not to end, and there are other conversations to draw.
        """
        row, limit = whole, self.max_length
        beyond = len(whole.input_ids) - limit
        if beyond > 0:
            if example.text is None:
                self.too_long += 1
                self._reason(f"{example.origin} is longer than {limit} tokens")
                return None
            row = Encoded(whole.input_ids[:limit], whole.labels[:limit], whole.prompt_tokens)
            self.texts_cut += 1
            self.tokens_cut += beyond
        self.rows += 1
        self.tokens += len(row.input_ids)
        self.trained_tokens += row.trained_tokens
        if len(row.input_ids) > self.longest.tokens:
            origin = example.origin
            self.longest = LongestRow(origin.file, origin.line, len(row.input_ids))
        return row

    def _reject(self, reason: str) -> None:
        self.rejected += 1
        self._reason(reason)

    def _reason(self, reason: str) -> None:
        self.first_reason = self.first_reason or reason

    def _nothing(self) -> DataError:
        found = self.counts()
        parts = {
            "unreadable": found.rejected,
            "too long": found.too_long,
            "asked in a held-out row too": found.held_out,
        }
        counted = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
        unread = self.drawing.first_rejected
        reason = self.first_reason or (f"{unread.origin} {unread.reason}" if unread else "")
        first = f"; {reason}" if reason else ""
        return DataError(
            "data_empty",
            f"data.replay: none of {found.rows_read} rows can be replayed"
            f"{f' ({counted})' if counted else ''}{first}",
            file=found.source,
        )


def replay_beside(task_rows: int, drawing: Drawing, max_length: int) -> Replay:
    """What is to be drawn beside so many rows of the task."""
    return Replay(drawing, rows_wanted(drawing.replay.share, task_rows), max_length)


def tell_few(found: Replayed, task_rows: int, reporter: Reporter) -> None:
    """Warn where the source has fewer rows than its share asks for."""
    if found.rows < found.wanted:
        share = found.rows / (found.rows + task_rows)
        reporter.warn(
            f"data.replay: {found.source} has {found.rows:,} rows to replay, and share "
            f"{found.share:g} asks for {found.wanted:,}: all are taken, once each ({share:.1%} of "
            "the rows); name a larger source, or lower data.replay.share"
        )
