"""The scorer of `eval.format`; patterns, sections and lengths, which any text may have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ftcli.config.answer_format import Limits
from ftcli.config.recipe import AnswerFormat, JsonFormat, RegexFormat, SqlFormat
from ftcli.evaluation.scorers.json_answers import JsonScorer, json_scorer
from ftcli.evaluation.scorers.scorer import (
    TIME_LIMIT_SECONDS,
    ExampleResult,
    Finding,
    Question,
    ScoreKind,
    TimeIsUp,
    time_limit,
)
from ftcli.evaluation.scorers.sql_answers import SqlScorer, sql_scorer

# About 32,000 tokens.
MAX_ANSWER_CHARACTERS = 200_000
MAX_MESSAGE_CHARACTERS = 200
MAX_LINES = 10_000
CHECK_KINDS = {
    "pattern_match": ScoreKind("matches the pattern", "share", "higher"),
    "sections_present": ScoreKind("sections, in order", "share", "higher"),
    "length_kept": ScoreKind("length within limits", "share", "higher"),
}


def format_scorer(wanted: AnswerFormat) -> FormatScorer:
    """The scorer of a loaded recipe's format.

    Raises DataError (`answer_schema`, `answer_table`) for a file that the format names.
    """
    match wanted:
        case JsonFormat():
            return FormatScorer(wanted, json_scorer(wanted))
        case SqlFormat():
            return FormatScorer(wanted, sql_scorer(wanted))
        case _:
            return FormatScorer(wanted, None)


@dataclass(frozen=True)
class FormatScorer:
    """Scores answers by the checks of a format; `format_rate`: all checks pass."""

    wanted: AnswerFormat
    content: JsonScorer | SqlScorer | None

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """Scores of JSON fields are known after scoring a reference that has them."""
        wanted = self.wanted
        checks = {
            "pattern_match": isinstance(wanted, RegexFormat) and wanted.asks_more,
            "sections_present": bool(wanted.sections),
            "length_kept": bool(wanted.words or wanted.characters),
        }
        kinds = {"format_rate": ScoreKind("format valid", "share", "higher")}
        kinds |= self.content.kinds if self.content else {}
        return kinds | {name: CHECK_KINDS[name] for name, has_check in checks.items() if has_check}

    def score(self, answer: str, question: Question) -> ExampleResult:
        """An answer that is too long or takes too long has nothing right."""
        why = f"more than {MAX_ANSWER_CHARACTERS:,} characters"
        try:
            if len(answer) <= MAX_ANSWER_CHARACTERS:
                with time_limit():
                    return self._score(answer, question)
        except TimeIsUp:
            why = f"took more than {TIME_LIMIT_SECONDS:.0f} s"
        except RecursionError:
            why = "nested too deeply"
        finding = Finding("not scored", why)
        try:
            with time_limit():
                counts = self._score("", question).counts
        except (TimeIsUp, RecursionError):
            return ExampleResult({"format_rate": (0.0, 1.0)}, (finding,))
        # Scores of the reference alone keep their values.
        kept = {name for name, kind in self.kinds.items() if kind.better is None}
        zero = {name: (0.0, total) for name, (_, total) in counts.items() if name not in kept}
        return ExampleResult({**counts, **zero}, (finding,))

    def warnings(self) -> list[str]:
        """Warnings after scoring every answer."""
        return self.content.warnings() if isinstance(self.content, SqlScorer) else []

    def _score(self, answer: str, question: Question) -> ExampleResult:
        results = []
        if isinstance(self.wanted, RegexFormat):
            results.append(pattern_result(answer, self.wanted.pattern))
        if self.content is not None:
            results.append(self.content.score(answer, question))
        if self.wanted.sections:
            results.append(sections_result(answer, self.wanted.sections))
        if self.wanted.words or self.wanted.characters:
            results.append(length_result(answer, self.wanted.words, self.wanted.characters))
        counts: dict[str, tuple[float, float]] = {}
        for result in results:
            counts |= result.counts
        # Each check has a `format_rate` of its own.
        counts["format_rate"] = min(result.counts["format_rate"] for result in results)
        findings = [finding for result in results for finding in result.findings]
        short = [replace(each, message=each.message[:MAX_MESSAGE_CHARACTERS]) for each in findings]
        return ExampleResult(counts, tuple(short))


def pattern_result(answer: str, pattern: str) -> ExampleResult:
    """Whether the whole answer, stripped, matches the pattern."""
    valid = re.fullmatch(pattern, answer.strip()) is not None
    counts = dict.fromkeys(("format_rate", "pattern_match"), (float(valid), 1.0))
    if valid:
        return ExampleResult(counts)
    found = re.search(pattern, answer)
    message = "the answer does not match the pattern"
    if found is not None and found.group():
        message = f"the pattern matches only a part of the answer: {found.group()}"
    return ExampleResult(counts, (Finding("pattern", message),))


def sections_result(answer: str, sections: Sequence[str]) -> ExampleResult:
    """Sections that begin lines in the given order ÷ sections.

    If a section ends in a letter or digit, its line must not continue with one.
    """
    starts = [
        re.compile(re.escape(section) + (r"(?![^\W_])" if section[-1].isalnum() else ""))
        for section in sections
    ]
    anywhere: set[int] = set()
    # Item n: the longest in-order subsequence of the first n sections.
    in_order: list[tuple[int, ...]] = [()] * (len(sections) + 1)
    for line in answer.split("\n", MAX_LINES)[:MAX_LINES]:
        begun = [index for index, start in enumerate(starts) if start.match(line)]
        anywhere.update(begun)
        for index in reversed(begun):
            longer = (*in_order[index], index)
            in_order[index + 1] = max(in_order[index + 1], longer, key=len)
        for index in range(len(sections)) if begun else ():
            in_order[index + 1] = max(in_order[index + 1], in_order[index], key=len)
    findings = tuple(
        Finding("section", f"{section}: {'out of order' if index in anywhere else 'missing'}")
        for index, section in enumerate(sections)
        if index not in in_order[-1]
    )
    present = (float(len(in_order[-1])), float(len(sections)))
    counts = {"format_rate": (float(not findings), 1.0), "sections_present": present}
    return ExampleResult(counts, findings)


def length_result(answer: str, words: Limits | None, characters: Limits | None) -> ExampleResult:
    """Whether the counts of words (split at white space) and characters are within limits."""
    findings: list[Finding] = []
    for unit, found, limits in (
        ("words", len(answer.split()), words),
        ("characters", len(answer.strip()), characters),
    ):
        low, high = (limits.min, limits.max) if limits else (None, None)
        if low is not None and found < low:
            findings.append(Finding("too short", f"{found} {unit}, expected at least {low}"))
        if high is not None and found > high:
            findings.append(Finding("too long", f"{found} {unit}, expected at most {high}"))
    kept = (float(not findings), 1.0)
    return ExampleResult({"format_rate": kept, "length_kept": kept}, tuple(findings))
