"""Parts of a form that any text may have: an expression, sections in order, a length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftcli.metrics.format.part import Seen, hit, share, shown
from ftcli.metrics.scorer import Finding, Question, ScoreKind
from ftcli.recipe.answer_format import Limits

# Lines of an answer in which sections are looked for.
MOST_LINES = 10_000


@dataclass(frozen=True)
class PatternPart:
    """The whole answer, without white space at either end, matches the expression."""

    pattern: re.Pattern[str]
    alone: bool
    """Nothing else is asked for: then its share is that of the whole form."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        return {} if self.alone else {"pattern_match": share("matches the pattern")}

    def look(self, answer: str, question: Question) -> Seen:
        text = answer.strip()
        if self.pattern.fullmatch(text) is not None:
            return Seen(True, {} if self.alone else {"pattern_match": hit(True)})
        counts = {} if self.alone else {"pattern_match": hit(False)}
        return Seen(False, counts, (self._finding(answer, text),))

    def _finding(self, answer: str, text: str) -> Finding:
        found = self.pattern.search(text) if text else None
        if found is None or found.start() == found.end():
            return Finding("pattern", "the answer does not match the pattern")
        start = answer.index(text)
        if found.start() > 0:
            before = "what stands before the part that matches the pattern"
            return Finding("pattern", before, start, start + found.start())
        after = "what stands after the part that matches the pattern"
        return Finding("pattern", after, start + found.end(), start + len(text))


@dataclass(frozen=True)
class SectionsPart:
    """Lines that begin with the texts of the sections, in their order.

    A line begins a section when it starts with the section's text and, where that ends in a letter
    or digit, goes on with neither. Score: sections found in order ÷ sections.
    """

    sections: tuple[str, ...]

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        return {"sections_present": share("sections, in order")}

    def look(self, answer: str, question: Question) -> Seen:
        lines = _lines(answer)
        begun = [[begins(line, section) for line, _ in lines] for section in self.sections]
        kept = _longest_in_order(begun)
        counts = {"sections_present": (float(len(kept)), float(len(self.sections)))}
        findings = []
        for index, section in enumerate(self.sections):
            if index in kept:
                continue
            start = next((lines[i][1] for i, begins in enumerate(begun[index]) if begins), None)
            what = "is missing" if start is None else "stands out of order"
            end = None if start is None else start + len(section)
            findings.append(Finding("section", f"{shown(section)}: {what}", start, end))
        return Seen(not findings, counts, tuple(findings))


def begins(line: str, section: str) -> bool:
    """Whether a line begins this section."""
    if not line.startswith(section):
        return False
    after = line[len(section) : len(section) + 1]
    return not (section[-1].isalnum() and after.isalnum())


def _lines(answer: str) -> list[tuple[str, int]]:
    """Each line with its place, in characters."""
    found, start = [], 0
    for line in answer.split("\n", MOST_LINES)[:MOST_LINES]:
        found.append((line, start))
        start += len(line) + 1
    return found


def _longest_in_order(begun: Sequence[Sequence[bool]]) -> set[int]:
    """Most sections that stand in their order, each on a line of its own: a common subsequence."""
    places = [[line for line, begins in enumerate(row) if begins] for row in begun]
    # Length of a sequence → its earliest last line, and its sections.
    best: list[tuple[int, tuple[int, ...]]] = [(-1, ())]
    for section, lines in enumerate(places):
        longer: list[tuple[int, tuple[int, ...]]] = []
        for last, members in best:
            line = next((place for place in lines if place > last), None)
            if line is not None:
                longer.append((line, (*members, section)))
        for line, members in longer:
            if len(members) == len(best):
                best.append((line, members))
            elif line < best[len(members)][0]:
                best[len(members)] = (line, members)
    return set(best[-1][1])


@dataclass(frozen=True)
class LengthPart:
    """Words (what white space parts) and characters (without white space at either end)."""

    words: Limits | None
    characters: Limits | None

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        return {"length_kept": share("length within limits")}

    def look(self, answer: str, question: Question) -> Seen:
        asked = (
            ("words", len(answer.split()), self.words),
            ("characters", len(answer.strip()), self.characters),
        )
        findings = []
        for name, found, limits in asked:
            if limits is not None and limits.min is not None and found < limits.min:
                message = f"{found} {name}; at least {limits.min} are asked for"
                findings.append(Finding("too short", message))
            if limits is not None and limits.max is not None and found > limits.max:
                message = f"{found} {name}; at most {limits.max} are asked for"
                start = _end_of(answer, name, limits.max)
                findings.append(Finding("too long", message, start, len(answer.rstrip())))
        return Seen(not findings, {"length_kept": hit(not findings)}, tuple(findings))


def _end_of(answer: str, name: str, count: int) -> int:
    """Where the allowed words or characters end."""
    if name == "characters":
        return len(answer) - len(answer.lstrip()) + count
    words = re.finditer(r"\S+", answer)
    return [next(words).end() for _ in range(count)][-1]
