"""Answers line by line: which kinds of lines follow each other, and which headings come back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

HEADING = re.compile(r"#{1,6}(?= )")
BULLET = re.compile(r"[-*•](?= )")
NUMBER = re.compile(r"\d{1,2}[.)](?= )")
LABEL = re.compile(r"[^\W\d_][\w &/-]{0,39}:(?=\s|$)")
# A heading of Markdown, whole, or a label at the beginning of a line.
SECTION = re.compile(r"^(#{1,6} [^\n]{1,60}|[^\W\d_][\w &/-]{0,39}:)(?=\s|$)", re.MULTILINE)
SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")
TEXT, BLANK, NUMBERED = "text", "", "1."
MOST_LINES = 30
MOST_RUNS = 12

Run = tuple[str, int]
"""A kind of line, and how many of it follow each other (0: any number)."""


@dataclass(frozen=True)
class LineForm:
    """The commonest order of lines."""

    share: float
    detail: str
    pattern: str
    """A regular expression of it, for the whole answer."""


def line_form(answers: Sequence[str], enough: float) -> LineForm | None:
    """The order that most answers have, with the numbers of lines where `enough` have those too.

    None: the commonest order is nothing but text.
    """
    labels = _common_labels(answers)
    exact = Counter(map(tuple, (_runs(answer, labels) for answer in answers)))
    loose: Counter[tuple[Run, ...]] = Counter()
    for runs, count in exact.items():
        loose[_loosened(runs)] += count
    best: Counter[tuple[Run, ...]] = exact
    if exact.most_common(1)[0][1] < enough * len(answers):
        best = loose
    form, count = best.most_common(1)[0]
    if all(kind in (TEXT, BLANK) for kind, _ in form) or len(form) > MOST_RUNS:
        return None
    pattern = r"\n".join(map(_pattern, form))
    return LineForm(count / len(answers), ", ".join(_shown(form)), pattern)


def escaped(text: str) -> str:
    """A regular expression of the text itself, without a stroke before what needs none."""
    return SPECIAL.sub(r"\\\g<0>", text)


def headings(answers: Sequence[str], enough: float) -> list[str]:
    """Headings and labels that `enough` of the answers have, in their commonest order."""
    each = [tuple(dict.fromkeys(m.group(1) for m in SECTION.finditer(a))) for a in answers]
    counts = Counter(name for names in each for name in names)
    kept = {name for name, count in counts.items() if count >= enough * len(answers)}
    orders = Counter(tuple(name for name in names if name in kept) for names in each)
    return list(max(orders.items(), key=lambda item: (item[1], item[0]))[0]) if orders else []


def _common_labels(answers: Sequence[str]) -> frozenset[str]:
    counts: Counter[str] = Counter()
    for answer in answers:
        lines = answer.split("\n", MOST_LINES)
        counts.update({found.group() for line in lines if (found := LABEL.match(line))})
    return frozenset(label for label, count in counts.items() if count > len(answers) / 2)


def _runs(answer: str, labels: frozenset[str]) -> list[Run]:
    lines = answer.split("\n", MOST_LINES)
    return [
        (kind, len(list(same))) for kind, same in groupby(_kind(line, labels) for line in lines)
    ]


def _kind(line: str, labels: frozenset[str]) -> str:
    if not line.strip():
        return BLANK
    if found := HEADING.match(line) or BULLET.match(line):
        return found.group()
    if NUMBER.match(line):
        return NUMBERED
    label = LABEL.match(line)
    return label.group() if label is not None and label.group() in labels else TEXT


def _loosened(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Without the numbers of lines, but for one that stands alone."""
    return tuple((kind, 0 if _repeats(kind) else count) for kind, count in runs)


def _repeats(kind: str) -> bool:
    return kind in (TEXT, NUMBERED) or BULLET.match(f"{kind} ") is not None


def _pattern(run: Run) -> str:
    kind, count = run
    if kind == BLANK:
        return r"\n".join([r"[^\S\n]*"] * count)
    begin = {TEXT: "", NUMBERED: r"\d+[.)] "}.get(kind)
    if begin is None:
        begin = escaped(kind) if kind.endswith(":") else f"{escaped(kind)} "
    line = rf"{begin}[^\n]*" if kind.endswith(":") else rf"{begin}[^\n]+"
    if count == 1:
        return line
    times = {0: "*", 2: ""}.get(count, f"{{{count - 1}}}")
    return rf"{line}(?:\n{line}){times}"


def _shown(form: Iterable[Run]) -> list[str]:
    """In the words of a sentence, without blank lines."""
    times = {0: "some ", 1: ""}
    return [
        times.get(count, f"{count} × ") + (kind if kind == TEXT else f"“{kind} …”")
        for kind, count in form
        if kind != BLANK
    ]
