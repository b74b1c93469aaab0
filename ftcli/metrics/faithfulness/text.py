"""A text as words, numbers and signs, each with its place, its sentence and its clause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

# One sign for one sign, so that places in the folded text are places in the text.
SAME_SIGNS = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "′": "'", "″": '"', "“": '"', "”": '"', "‑": "-"}
    | {"\u2010": "-", "\u2212": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2044": "/"}
)
# Runs of letters with apostrophes inside; digits with points and commas inside; any other sign.
# Small raised figures and fractions are letters to Python, and signs here.
LETTER = r"[^\W\d_²³¹⁰-₉¼-¾⅐-⅞]"
PIECE = re.compile(rf"{LETTER}+(?:'{LETTER}+)*|\d+(?:[.,]\d+)*|\S")
DASHES = {"-", "–"}
ENDS_SENTENCE = {".", "!", "?", "…", "|", "•", "·"}
ENDS_CLAUSE = {",", ";", ":", "—", "(", ")", "–", '"', "*"}


def in_order(words: str) -> list[str]:
    """Words written one behind the other."""
    return words.split()


def named(words: str) -> frozenset[str]:
    """A set of words written one behind the other."""
    return frozenset(words.split())


Sort = Literal["word", "number", "sign"]


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a number or a sign."""

    start: int
    end: int
    low: str
    sort: Sort
    sentence: int
    clause: int
    glued: bool
    """Nothing stands between it and the token before."""
    joined: str
    """The dash, without spaces, between it and the token before."""
    capital: bool


class Text:
    """A text and its tokens; dashes that join two words or numbers are no tokens."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.tokens: Sequence[Token] = _tokens(raw)

    @cached_property
    def low(self) -> str:
        """The same in lower case, character for character."""
        return _folded(self.raw)

    @cached_property
    def sentences(self) -> list[range]:
        """Token numbers of each sentence; a line ends a sentence."""
        return _runs([token.sentence for token in self.tokens])

    @cached_property
    def small_words(self) -> frozenset[str]:
        """Words that stand somewhere without a capital."""
        return frozenset(
            token.low for token in self.tokens if token.sort == "word" and not token.capital
        )

    def words(self, places: Iterable[int]) -> list[str]:
        return [self.tokens[i].low for i in places if self.tokens[i].sort != "sign"]

    def at(self, index: int) -> str:
        """The token at a place, or nothing beyond either end."""
        return self.tokens[index].low if 0 <= index < len(self.tokens) else ""

    def same_sentence(self, one: int, other: int) -> bool:
        in_text = 0 <= one < len(self.tokens) and 0 <= other < len(self.tokens)
        return in_text and self.tokens[one].sentence == self.tokens[other].sentence

    def same_clause(self, one: int, other: int) -> bool:
        in_text = 0 <= one < len(self.tokens) and 0 <= other < len(self.tokens)
        return in_text and self.tokens[one].clause == self.tokens[other].clause

    def span(self, first: int, after: int) -> tuple[int, int]:
        """Characters of the tokens [first, after)."""
        return self.tokens[first].start, self.tokens[after - 1].end

    def is_word(self, index: int) -> bool:
        return 0 <= index < len(self.tokens) and self.tokens[index].sort == "word"

    def line_begins(self, index: int) -> bool:
        """Whether only signs such as `#`, `-` and `*` stand before it on its line."""
        start = self.tokens[index].start
        line = self.raw.rfind("\n", max(0, start - 12), start) + 1
        if line == 0 and start > 12:
            return False
        return not any(sign.isalnum() for sign in self.raw[line:start])


def _folded(raw: str) -> str:
    plain = raw.translate(SAME_SIGNS)
    low = plain.lower()
    if len(low) == len(raw):
        return low
    return "".join(sign.lower() if len(sign.lower()) == 1 else sign for sign in plain)


def _tokens(raw: str) -> list[Token]:
    low = _folded(raw)
    tokens: list[Token] = []
    sentence = clause = 0
    end, dash = 0, ""
    for found in PIECE.finditer(low):
        start, piece = found.start(), found.group()
        glued = start == end and start > 0
        if end and "\n" in low[end:start]:
            sentence, clause, dash = sentence + 1, clause + 1, ""
        if piece in DASHES and glued and _joins(low, start, found.end()):
            end, dash = found.end(), piece
            continue
        sort: Sort = "sign"
        if piece[0].isalpha():
            sort = "word"
        elif piece[0].isdecimal():
            sort = "number"
        capital = sort == "word" and raw[start].isupper()
        tokens.append(
            Token(start, found.end(), piece, sort, sentence, clause, glued, dash, capital)
        )
        end, dash = found.end(), ""
        if sort == "sign":
            ends = piece in ENDS_SENTENCE and not (piece == "." and _abbreviates(tokens, low, end))
            sentence += ends
            clause += ends or piece in ENDS_CLAUSE
    return tokens


def _joins(low: str, start: int, end: int) -> bool:
    after = low[end : end + 1]
    return (low[start - 1].isalnum() or low[start - 1] in "%\"'°$€£") and (
        after.isalnum() or after in "$€£"
    )


ABBREVIATED = {"dr", "mr", "mrs", "ms", "st", "no", "approx", "vs", "e", "g", "i", "p", "m", "a"}


def _abbreviates(tokens: Sequence[Token], low: str, end: int) -> bool:
    """Whether a point ends no sentence: `approx. 3`, `e.g.`, `p.m.`, `.5`."""
    if low[end : end + 1].isalnum():
        return True
    before = tokens[-2].low if len(tokens) > 1 and tokens[-1].glued else ""
    return before in ABBREVIATED and low[end : end + 1] == " "


def _runs(numbers: Sequence[int]) -> list[range]:
    runs: list[range] = []
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[start]:
            runs.append(range(start, index))
            start = index
    return runs
