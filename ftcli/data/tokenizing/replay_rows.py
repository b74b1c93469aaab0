"""Rows that are replayed beside the task's (data.replay): drawn, rendered, counted on their own."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ftcli.config.data import BUILTIN
from ftcli.console import Reporter
from ftcli.data.example import Example, Origin
from ftcli.data.prepared import LongestRow, Replayed
from ftcli.data.replay import Drawing, rows_wanted
from ftcli.data.row import Reject
from ftcli.data.tokenizing.bulk import Item, encode_items
from ftcli.data.tokenizing.rendering import Encoded, Renderer
from ftcli.errors import DataError

NO_ROW = LongestRow("", 0, 0)
# More rows are looked at ahead than are expected to do: each time too few is once more through all.
MARGIN, LEAST_AHEAD = 1.2, 16
# Of 8 bytes; they wait in memory.
MOST_TOKENS_AHEAD = 4_000_000


@dataclass(frozen=True)
class _Looked:
    """One drawn row as it would be replayed, or why it is left out."""

    origin: Origin
    example: Example | None = None
    ids: Sequence[int] = ()
    labels: Sequence[int] = ()
    prompt_tokens: int = 0
    tokens_cut: int = 0
    too_long: bool = False
    reason: str = ""

    def waiting(self) -> _Looked:
        """The same, in an eighth of the memory."""
        return replace(self, ids=array("i", self.ids), labels=array("i", self.labels))


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
    ahead: dict[int, _Looked] = field(default_factory=dict)
    """Rows that have been looked at before they are drawn, by their number."""

    def drawn(self, renderer: Renderer) -> Iterator[tuple[Example, Encoded]]:
        """The rows, in the order of the file; for each that is left out the next one is drawn.

        Raises DataError (`data_empty`) where none can be used.
        """
        order, place = self.drawing.order, 0
        while chosen := set(order[place : place + self.wanted - self.rows]):
            place += len(chosen)
            for looked in self._looked_at(chosen, place, renderer):
                if (row := self._take(looked)) is not None:
                    yield row
        if not self.rows:
            raise self._nothing()

    def _looked_at(self, chosen: set[int], place: int, renderer: Renderer) -> Iterator[_Looked]:
        """The chosen rows in the order of the file; those from `place` on will be drawn next.

        The source is read once more where not all of them were looked at ahead, and then for as
        many of the next as will probably be drawn.
        """
        waiting = sorted(chosen & self.ahead.keys())
        held = [(number, self.ahead.pop(number)) for number in waiting]
        missing = chosen.difference(waiting)
        read: Iterator[tuple[int, _Looked]] = iter(())
        if missing:
            further = self.drawing.order[place : place + self._further(len(chosen))]
            read = self._read(missing.union(further) - self.ahead.keys(), renderer)
        for number, looked in heapq.merge(held, read, key=lambda pair: pair[0]):
            if number in chosen:
                yield looked
            else:
                self.ahead[number] = looked.waiting()

    def _further(self, chosen: int) -> int:
        """How many rows to look at behind the chosen ones; none before anything is left out."""
        looked_at = self.rows + self.rejected + self.too_long
        if not looked_at:
            return 0
        missing = min(self.wanted - self.rows, MOST_TOKENS_AHEAD // self.max_length)
        wanted = math.ceil(missing * looked_at / max(self.rows, 1) * MARGIN) + LEAST_AHEAD
        return max(wanted - chosen, 0)

    def _read(self, numbers: set[int], renderer: Renderer) -> Iterator[tuple[int, _Looked]]:
        """Rows of the source by their numbers, as they would be replayed."""
        items: Iterator[Item] = ((row, "train") for row in self.drawing.rows(numbers))
        # A source that has changed meanwhile may have fewer; it is found out at the end.
        for number, item in zip(sorted(numbers), encode_items(items, renderer), strict=False):
            if isinstance(item, Reject):
                yield number, _Looked(item.origin, reason=item.reason)
            else:
                yield number, self._within(item[0], item[2])

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

    def _within(self, example: Example, whole: Encoded) -> _Looked:
        """The row within `max_length`: a text's first tokens; a conversation whole, or not at all.

        An answer that is cut would teach not to end, and there are other conversations to draw.
        """
        limit, ids = self.max_length, whole.input_ids
        beyond = max(len(ids) - limit, 0)
        if beyond and example.text is None:
            reason = f"is longer than {limit} tokens"
            return _Looked(example.origin, too_long=True, reason=reason)
        row = ids[:limit], whole.labels[:limit], whole.prompt_tokens
        return _Looked(example.origin, example, *row, tokens_cut=beyond)

    def _take(self, looked: _Looked) -> tuple[Example, Encoded] | None:
        """Count a row that is drawn, or why it is left out."""
        origin = looked.origin
        if looked.example is None:
            self.too_long += looked.too_long
            self.rejected += not looked.too_long
            self.first_reason = self.first_reason or f"{origin} {looked.reason}"
            return None
        row = Encoded(list(looked.ids), list(looked.labels), looked.prompt_tokens)
        self.texts_cut += looked.tokens_cut > 0
        self.tokens_cut += looked.tokens_cut
        self.rows += 1
        self.tokens += len(row.input_ids)
        self.trained_tokens += row.trained_tokens
        if len(row.input_ids) > self.longest.tokens:
            self.longest = LongestRow(origin.file, origin.line, len(row.input_ids))
        return looked.example, row

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
    """Warn where the user's source has fewer rows than its share asks for."""
    if found.rows < found.wanted and found.source != BUILTIN:
        share = found.rows / (found.rows + task_rows)
        reporter.warn(
            f"data.replay: {found.source} has {found.rows:,} rows to replay, and share "
            f"{found.share:g} asks for {found.wanted:,}: all are taken, once each ({share:.1%} of "
            "the rows); name a larger source, or lower data.replay.share"
        )
