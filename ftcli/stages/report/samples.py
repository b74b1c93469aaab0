"""Answers side by side, with what was found in them marked, as many as a page can hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ftcli.results import Answer, AnsweredRow, EvalResult, Finding, ScoreRow

# A browser on a phone stays quick with so many rows, and a page of some MB can be sent.
MOST_ROWS, MOST_CHARACTERS = 500, 2_000_000
# Of one text; a page of product copy has half of it.
LONGEST_TEXT = 4000
MOST_FINDINGS = 50

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
    """One held-out row; the tags say what the tuned model did."""

    row: AnsweredRow
    tags: tuple[Tag, ...]

    @property
    def characters(self) -> int:
        """Those that the page shows."""
        texts = [self.row.prompt, self.row.reference, self.row.facts or ""]
        texts += [answer.text for answer in self.row.sides.values()]
        return sum(min(len(text), LONGEST_TEXT) for text in texts)


@dataclass(frozen=True)
class Samples:
    """Rows of an evaluation, as far as the page shows them."""

    rows: tuple[Sample, ...]
    total: int
    """Rows of the file that could be read."""

    @property
    def tags(self) -> dict[Tag, int]:
        """How many of the shown rows have each."""
        return {tag: sum(tag in each.tags for each in self.rows) for tag in TAGS}


@dataclass(frozen=True)
class Piece:
    """A stretch of a text."""

    text: str
    marked: bool = False
    numbers: tuple[int, ...] = ()
    """Of the findings that end here, from 1."""


def samples_in(file: Path, result: EvalResult) -> Samples:
    """Of a file of answers; of many rows those with a finding, or worse, come first."""
    first: list[Sample] = []
    others: list[Sample] = []
    total = 0
    for row in _rows(file):
        total += 1
        sample = Sample(row, tuple(_tags(row, result)))
        kept = first if set(sample.tags) - {"better"} else others
        if len(kept) < MOST_ROWS:
            kept.append(sample)
    chosen = [*first, *others][:MOST_ROWS]
    room = itertools.accumulate(sample.characters for sample in chosen)
    shown = [sample for sample, used in zip(chosen, room, strict=True) if used <= MOST_CHARACTERS]
    return Samples(tuple(sorted(shown, key=lambda sample: sample.row.number)), total)


def _rows(file: Path) -> Iterator[AnsweredRow]:
    with file.open("rb") as lines:
        for line in lines:
            try:
                yield AnsweredRow.model_validate_json(line)
            except ValidationError:
                continue  # the page says how many rows are there


def marked(text: str, findings: Sequence[Finding] = ()) -> list[Piece]:
    """The beginning of a text, in pieces that end where a finding begins or ends."""
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
    tuned = row.sides.get("tuned")
    if tuned is None:
        return
    shares = [score for score in result.shown_rows if score.unit == "share" and score.better]
    truth = [score for score in shares if score.name in result.truth_measured_by]
    tags: dict[Tag, bool] = {
        "format": _misses(tuned, "format_rate"),
        "terms": _adds(tuned, "not_in_prompt"),
        "banned": _adds(tuned, "banned_phrases"),
        "wrong": any(_misses(tuned, each.name) for each in truth if each.better == "higher"),
        "unfinished": not tuned.stopped,
    }
    yield from (tag for tag, holds in tags.items() if holds)
    base = row.sides.get("base")
    changes = {_change(score, base, tuned) for score in shares} if base is not None else set()
    if len(changes - {0}) == 1:
        yield "better" if 1 in changes else "worse"


def _adds(answer: Answer, name: str) -> bool:
    return answer.counts.get(name, (0, 0))[0] > 0


def _misses(answer: Answer, name: str) -> bool:
    top, bottom = answer.counts.get(name, (0, 0))
    return top < bottom


def _change(row: ScoreRow, base: Answer, tuned: Answer) -> int:
    """1: the tuned answer is better in this score, -1: worse, 0: neither, or not comparable."""
    if row.name == "stop_rate":
        change = float(tuned.stopped - base.stopped)
    else:
        (before, of), (after, out_of) = (
            answer.counts.get(row.name, (0, 0)) for answer in (base, tuned)
        )
        change = after / out_of - before / of if of and out_of else 0
    sign = (change > 0) - (change < 0)
    return sign if row.better == "higher" else -sign
