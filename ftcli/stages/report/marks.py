"""A text cut to a page's size, in pieces: those that prove a finding are marked and numbered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ftcli.stages.report.plain import Plain, items, mapping, text

# Of one text; a page of product copy has half of it.
LONGEST_TEXT = 4000
MOST_FINDINGS = 50
LONGEST_MESSAGE = 300
# Characters before and after the words that prove something.
AROUND = 60


Tag = Literal["format", "content", "term", "banned", "note"]
# The form is there, and what it holds is not what the reference holds.
CONTENT = {"other value", "other result", "does not run"}
NOT_IN_THE_PROMPT = "not in the prompt"
# Why something could not be looked at: no fault of the answer.
NOTES = {"not looked at", "reference", "not mentioned"}


@dataclass(frozen=True)
class Found:
    """Something wrong with an answer."""

    number: int
    """From 1, within its answer."""
    kind: str
    tag: Tag
    message: str
    span: tuple[int, int] | None
    """Characters of the answer that prove it; none: it is in no one place."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a text, and the numbers of the findings that it proves."""

    text: str
    numbers: tuple[int, ...] = ()
    tag: str = ""


@dataclass(frozen=True)
class Shown:
    """A text, as much of it as is shown."""

    pieces: tuple[Piece, ...]
    left_out: int
    """Characters that are not shown."""

    @property
    def length(self) -> int:
        return sum(len(piece.text) for piece in self.pieces)


@dataclass(frozen=True)
class Excerpt:
    """The words that prove something, between what stands around them."""

    before: str
    marked: str
    after: str


def findings_of(answer: Plain, *, placed: bool) -> tuple[Found, ...]:
    """Findings of one answer, in their order; `placed`: their places are those of the text."""
    found = []
    length = len(text(answer.get("text")))
    for number, each in enumerate(items(answer.get("findings"))[:MOST_FINDINGS], 1):
        plain = mapping(each)
        kind = text(plain.get("kind"))
        span = _span(plain, length) if placed else None
        message = text(plain.get("message"))
        found.append(Found(number, kind, _tag(kind), message[:LONGEST_MESSAGE], span))
    return tuple(found)


def _tag(kind: str) -> Tag:
    lower = kind.lower()
    if lower in NOTES:
        return "note"
    if lower in CONTENT:
        return "content"
    if "banned" in lower:
        return "banned"
    return "term" if NOT_IN_THE_PROMPT in lower else "format"


def _span(plain: Plain, length: int) -> tuple[int, int] | None:
    start, end = plain.get("start"), plain.get("end")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= length:
        return None
    return start, end


def shown(whole: str, findings: Sequence[Found] = ()) -> Shown:
    """The text from its beginning, cut where any finding begins or ends."""
    kept = whole[:LONGEST_TEXT]
    spans = [(*found.span, found) for found in findings if found.span is not None]
    borders = {0, len(kept)}
    for start, end, _ in spans:
        borders |= {min(start, len(kept)), min(end, len(kept))}
    ends = sorted(borders)
    pieces = []
    for start, end in itertools.pairwise(ends):
        here = [found for low, high, found in spans if low <= start and end <= high]
        # The number stands once, where the marked words end.
        numbers = tuple(found.number for found in here if found.span and found.span[1] == end)
        pieces.append(Piece(kept[start:end], numbers, here[0].tag if here else ""))
    return Shown(tuple(pieces), len(whole) - len(kept))


def excerpt(whole: str, found: Found) -> Excerpt | None:
    """The marked words between a little of what stands around them."""
    if found.span is None:
        return None
    start, end = found.span
    before, after = whole[max(0, start - AROUND) : start], whole[end : end + AROUND]
    marked = whole[start:end]
    if len(marked) > LONGEST_MESSAGE:
        marked, after = f"{marked[:LONGEST_MESSAGE]}…", ""
    dots = ("…" if start > AROUND else "", "…" if end + AROUND < len(whole) else "")
    return Excerpt(f"{dots[0]}{before}", marked, f"{after}{dots[1]}")
