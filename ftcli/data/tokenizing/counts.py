"""What is counted while rows are prepared: sizes of splits, truncation, rejected rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ftcli.data.dataset import NO_ROW, Assigned, LongestRow, RejectedRows, Replayed, SplitCounts
from ftcli.data.example import Example
from ftcli.data.tokenizing.prefix_tree import common_tokens
from ftcli.data.tokenizing.rendering import Encoded, Renderer


@dataclass
class Counts:
    """Running counts of the rows taken and the rows rejected."""

    max_length: int
    drop: bool
    """Reject rows whose answer is truncated (data.too_long)."""
    rejected: RejectedRows = field(default_factory=RejectedRows)
    cut: RejectedRows = field(default_factory=RejectedRows)
    """Rows taken with a truncated answer."""
    controlled: RejectedRows = field(default_factory=RejectedRows)
    """Plain texts taken although they contain control tokens."""
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    empty_columns: Counter[str] = field(default_factory=Counter)
    """Column of a template → rows taken without a value in it."""
    answer_tokens: int = 0
    lost: int = 0
    longest: LongestRow = NO_ROW
    plain_text: bool = False
    replayed: Replayed | None = None
    longest_replayed: LongestRow = NO_ROW
    common: list[int] | None = None
    """Prefix of all training rows; None before the first."""

    def take(self, example: Example, split: Assigned, whole: Encoded) -> Encoded | None:
        """The row within `max_length`, or None if it is rejected; counts it."""
        limit, row = self.max_length, whole.first(self.max_length)
        kept, labels = row.label_tokens, whole.label_tokens
        if self.drop and kept < labels:
            reason = f"{len(whole.input_ids)} tokens, and max_length is {limit} (too_long: drop)"
            self.rejected.add(example.origin, reason)
            return None
        self.answer_tokens += labels
        self.lost += labels - kept
        if kept == 0:
            reason = (
                f"answer fully truncated at {limit} tokens (the row has {len(whole.input_ids)})"
            )
            self.rejected.add(example.origin, reason)
            return None
        if kept < labels:
            reason = f"answer truncated at {limit} tokens: {labels - kept} of {labels} lost"
            self.cut.add(example.origin, reason)
        tokens, before = len(row.input_ids), self.of(split)
        self.splits[split] = SplitCounts(
            before.rows + 1, before.tokens + tokens, before.label_tokens + kept
        )
        self.plain_text = example.text is not None
        self.empty_columns.update(example.empty_columns)
        self.longest = self.longest.or_longer(example.origin, tokens)
        if split == "train":
            self.shorten_common(row)
        return row

    def shorten_common(self, row: Encoded) -> None:
        """Shorten the common prefix to what this training row begins with."""
        common = row.input_ids if self.common is None else self.common
        if row.input_ids[: len(common)] != common:
            common = common[: common_tokens(common, row.input_ids)]
        self.common = common

    def note_control_tokens(self, example: Example, row: Encoded, renderer: Renderer) -> None:
        """Count a plain text with control tokens: their author is unknown without a template."""
        ids = row.input_ids[:-1] if example.text is not None else []
        begun = ids[:1] == [renderer.tokenizer.bos_token_id]
        if not renderer.escaping.special.isdisjoint(ids[begun:]):
            self.controlled.add(example.origin, "")

    def of(self, split: Assigned) -> SplitCounts:
        return self.splits.get(split, SplitCounts(0, 0, 0))
