"""A rendered conversation: which of its characters, and of its tokens, are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftcli.data.tokenizing.special_tokens import Span, Token


@dataclass(frozen=True)
class Answer:
    """Characters [start, end) to train on; they hold the token that ends it if `stopped`."""

    start: int
    end: int
    stopped: bool


@dataclass(frozen=True)
class Layout:
    """A rendered conversation up to the end of its last answer, and which characters are whose."""

    text: str
    answers: list[Answer]
    forged: list[Span]

    @property
    def prompt(self) -> str:
        """What stands before the last answer."""
        return self.text[: self.answers[-1].start]


def behind_header(text: str, header: str, content: int | None) -> int | None:
    """Where an earlier answer begins whose thinking block is left out of the history."""
    found = content is not None and any(
        text.endswith(header[:length], 0, content) for length in range(1, len(header) + 1)
    )
    return content if found else None


def places_of(tokens: Sequence[Token], answer: Answer) -> set[int]:
    """Where the tokens of an earlier answer stand, without one that it shares with its prompt.

    In use the history is encoded without regard to such borders.
    """
    first = sum(token.end <= answer.start for token in tokens)
    # Offsets may leave out a token's first space; a gap before the answer tells as well.
    first += tokens[first - 1].end < answer.start
    return set(range(first, sum(token.start < answer.end for token in tokens)))
