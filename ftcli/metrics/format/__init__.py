"""Whether answers have the form that the recipe asks for, and how right what they hold is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from ftcli.metrics.format.json_part import json_part
from ftcli.metrics.format.named_table import require_table
from ftcli.metrics.format.part import Part, Seen, hit, share
from ftcli.metrics.format.sql_part import SqlPart, sql_part
from ftcli.metrics.format.text_parts import LengthPart, PatternPart, SectionsPart
from ftcli.metrics.format.time_limit import SECONDS, TimeIsUp, within
from ftcli.metrics.scorer import ExampleResult, Finding, Question, ScoreKind
from ftcli.recipe import AnswerFormat, JsonFormat, RegexFormat, SqlFormat, TextFormat

__all__ = ["FormatScorer", "format_files", "format_scorer", "require_format_files"]

# A context of 32,000 tokens holds about as much; longer answers are not looked into.
LONGEST = 200_000


def format_scorer(wanted: AnswerFormat, base: Path) -> FormatScorer:
    """Look at answers for the form of a recipe in the folder `base`.

    Scores: `format_rate` (every part of the form holds), then those of its parts. Raises DataError
    (`answer_schema`, `answer_table`) for a file that the form names.
    """
    return FormatScorer(tuple(_parts(wanted, base)))


def format_files(wanted: AnswerFormat, base: Path) -> list[Path]:
    """Files that the scores depend on besides the answers."""
    match wanted:
        case JsonFormat(schema=str(name)):
            return [base / name]
        case SqlFormat(table=str(name)) if name != "prompt":
            return [base / name]
        case _:
            return []


def require_format_files(wanted: AnswerFormat, base: Path) -> None:
    """Raise DataError as `format_scorer` does; a table is read and not kept."""
    match wanted:
        case SqlFormat(table=str(name)) if name != "prompt":
            require_table(name, base)
        case JsonFormat():
            json_part(wanted, base)
        case _:
            pass


def _parts(wanted: AnswerFormat, base: Path) -> list[Part]:
    parts: list[Part] = []
    match wanted:
        case RegexFormat():
            parts.append(PatternPart(re.compile(wanted.pattern), alone=not wanted.asks_more))
        case JsonFormat():
            parts.append(json_part(wanted, base))
        case SqlFormat():
            parts.append(sql_part(wanted, base))
        case TextFormat():
            pass
        case _:
            assert_never(wanted)
    if wanted.sections:
        parts.append(SectionsPart(tuple(wanted.sections)))
    if wanted.words is not None or wanted.characters is not None:
        parts.append(LengthPart(wanted.words, wanted.characters))
    return parts


@dataclass(frozen=True)
class FormatScorer:
    """A Scorer of the form, which may have something to say when all answers are judged."""

    parts: tuple[Part, ...]

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """Those of single JSON fields are there once a reference with them has been judged."""
        kinds = {"format_rate": share("in the format")}
        for part in self.parts:
            kinds |= part.kinds
        return kinds

    def score(self, answer: str, question: Question) -> ExampleResult:
        if len(answer) > LONGEST:
            return self._refused(f"more than {LONGEST:,} characters", question)
        try:
            with within():
                return _together([part.look(answer, question) for part in self.parts])
        except TimeIsUp:
            return self._refused(f"took more than {SECONDS:.0f} s to look at", question)
        except RecursionError:
            return self._refused("nested too deeply to look at", question)

    def warnings(self) -> list[str]:
        """What the user should hear once every answer is judged; mostly nothing."""
        return [
            each for part in self.parts if isinstance(part, SqlPart) for each in part.warnings()
        ]

    def _refused(self, why: str, question: Question) -> ExampleResult:
        """Nothing of what could be had, with the reason."""
        finding = Finding("not looked at", why)
        try:
            with within():
                seen = [part.look("", question) for part in self.parts]
        except (TimeIsUp, RecursionError):
            return ExampleResult({"format_rate": hit(False)}, (finding,))
        judged = {name: kind.better for name, kind in self.kinds.items()}
        # What says nothing of the answer, such as whether its reference could be run, stays.
        counts = {
            name: (0.0 if judged.get(name, "higher") else top, bottom)
            for name, (top, bottom) in _together(seen).counts.items()
        }
        return ExampleResult(counts, (finding,))


def _together(seen: list[Seen]) -> ExampleResult:
    counts = {"format_rate": hit(all(each.holds for each in seen))}
    findings: tuple[Finding, ...] = ()
    for each in seen:
        counts |= each.counts
        findings += each.findings
    return ExampleResult(counts, findings)
