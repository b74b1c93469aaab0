"""Answers side by side with their findings marked, up to the limits of a page."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ftcli.runs.results import Answer, AnsweredRow, EvalResult, Finding

# A browser on a phone stays fast with this many rows.
MOST_ROWS = 500
# Characters of one text; a page of product copy has half as many.
LONGEST_TEXT = 4000

Tag = Literal["format", "terms", "banned", "wrong", "unfinished", "better", "worse"]
TAGS: Mapping[Tag, str] = {
    "format": "failed the format",
    "terms": "terms not in the prompt",
    "banned": "banned phrase",
    "wrong": "not right",
    "unfinished": "did not finish",
    "better": "better than the base",
    "worse": "worse than the base",
}


@dataclass(frozen=True)
class Sample:
    """One held-out row, with tags for the tuned answer."""

    row: AnsweredRow
    tags: tuple[Tag, ...]


@dataclass(frozen=True)
class Samples:
    """The shown rows of an evaluation."""

    rows: tuple[Sample, ...]
    total: int
    """All readable rows of the file."""

    @property
    def tags(self) -> dict[Tag, int]:
        """How many of the shown rows have each tag."""
        return {tag: sum(tag in each.tags for each in self.rows) for tag in TAGS}


@dataclass(frozen=True)
class Piece:
    """A part of a text."""

    text: str
    marked: bool = False
    numbers: tuple[int, ...] = ()
    """Numbers of the findings that end here, from 1."""


def samples_in(file: Path, result: EvalResult) -> Samples:
    """Samples from a file of answers. If there are too many, rows with a finding or a worse answer
    are kept first."""
    first: list[Sample] = []
    others: list[Sample] = []
    total = 0
    for row in _rows(file):
        total += 1
        sample = Sample(row, tuple(_tags(row, result)))
        kept = first if set(sample.tags) - {"better"} else others
        if len(kept) < MOST_ROWS:
            kept.append(sample)
    shown = [*first, *others][:MOST_ROWS]
    return Samples(tuple(sorted(shown, key=lambda sample: sample.row.number)), total)


def _rows(file: Path) -> Iterator[AnsweredRow]:
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for line in lines:
            try:
                yield AnsweredRow.model_validate_json(line)
            except ValidationError:
                continue  # the report says how many rows are missing


def marked(text: str, findings: Sequence[Finding] = ()) -> list[Piece]:
    """The start of a text, in pieces that end where a finding starts or ends."""
    kept = text[:LONGEST_TEXT]
    spans = [
        (each.start, each.end, number)
        for number, each in enumerate(findings, 1)
        if each.start is not None and each.end is not None and each.start < each.end <= len(text)
    ]
    borders = {0, len(kept), *(min(b, len(kept)) for span in spans for b in span[:2])}
    pieces = []
    for start, end in itertools.pairwise(sorted(borders)):
        here = [span for span in spans if span[0] <= start and end <= span[1]]
        numbers = tuple(number for _, last, number in here if last == end)
        pieces.append(Piece(kept[start:end], bool(here), numbers))
    return pieces


def _tags(row: AnsweredRow, result: EvalResult) -> Iterator[Tag]:
    tuned, base = row.sides.get("tuned"), row.sides.get("base")
    if tuned is None:
        return
    rates = [score for score in result.shown_rows if score.unit == "share" and score.better]
    after, before = _values(tuned), _values(base) if base is not None else {}
    truth = [each.name for each in rates if each.better == "higher"]
    if after.get("format_rate", 1) < 1:
        yield "format"
    if after.get("not_in_prompt", 0) > 0:
        yield "terms"
    if after.get("banned_phrases", 0) > 0:
        yield "banned"
    if any(after.get(name, 1) < 1 for name in truth if name in result.truth_measured_by):
        yield "wrong"
    if not tuned.stopped:
        yield "unfinished"
    gains = [
        (after[each.name] - before[each.name]) * (1 if each.better == "higher" else -1)
        for each in rates
        if each.name in after and each.name in before
    ]
    signs = {gain > 0 for gain in gains if gain}
    if len(signs) == 1:
        yield "better" if True in signs else "worse"


def _values(answer: Answer) -> dict[str, float]:
    """Name of a score → its value for this answer."""
    counts = {name: numerator / of for name, (numerator, of) in answer.counts.items() if of}
    return counts | {"stop_rate": float(answer.stopped)}
