"""Patterns, sections, lengths, and answers that are too long or take too long."""

from __future__ import annotations

import re
import signal
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.config.recipe import RegexFormat, TextFormat
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import ExampleResult, Question, time_limit

NOTHING = Question("", "", "")


def scored(answer: str, **form: Any) -> ExampleResult:
    wanted = RegexFormat if "pattern" in form else TextFormat
    return format_scorer(wanted(**form)).score(answer, NOTHING)


def matches(pattern: str, answer: str) -> bool:
    return scored(answer, type="regex", pattern=pattern).counts["format_rate"] == (1, 1)


def messages(answer: str, **form: Any) -> list[str]:
    return [finding.message for finding in scored(answer, **form).findings]


@pytest.mark.parametrize(
    ("pattern", "answer", "valid"),
    [
        (r"# [^\n]+\n.+", "\n# Title\nBody \n", True),
        (r"# [^\n]+\n.+", "Sure! # Title\nBody", False),
        (r"# [^\n]+\n.+", "# Title\nBody\nmore", False),
        (r"yes|no", "yes", True),
        (r"yes|no", "yes and no", False),
        (r"yes|no", "", False),
        (r".*", "", True),
        (r"(?i)yes", "YES", True),
        (r"\w+", "Größe", True),
    ],
)
def test_a_pattern_has_to_match_the_whole_answer(pattern: str, answer: str, valid: bool) -> None:
    assert matches(pattern, answer) is valid


def test_the_matching_part_is_named() -> None:
    part = "the pattern matches only a part of the answer: yes"
    assert messages("Sure! yes", type="regex", pattern="yes") == [part]
    nothing = "the answer does not match the pattern"
    assert messages("maybe", type="regex", pattern="yes") == [nothing]


@pytest.mark.parametrize(
    ("line", "section", "present"),
    [
        ("## Materials", "## Materials", True),
        ("## Materials and care", "## Materials", True),
        ("## Materials_2", "## Materials", True),
        ("## Materialschlacht", "## Materials", False),
        ("## Materialsé", "## Materials", False),
        (" ## Materials", "## Materials", False),
        ("## materials", "## Materials", False),
        ("Specs: 10 cm", "Specs:", True),
        ("# Any title", "# ", True),
    ],
)
def test_a_line_begins_a_section(line: str, section: str, present: bool) -> None:
    counts = scored(f"first\n{line}\nlast", type="text", sections=[section]).counts
    assert counts["sections_present"] == counts["format_rate"] == (present, 1)


@pytest.mark.parametrize(
    ("answer", "sections", "found"),
    [
        ("A\nx\nB\ny\nC\nA", "ABC", []),
        ("A\nC", "ABC", ["B: missing"]),
        ("C\nA\nB", "ABC", ["C: out of order"]),
        ("", "AB", ["A: missing", "B: missing"]),
        ("B\nA\nB\nC", "ABC", []),
        ("A\nB", "AA", ["A: out of order"]),
        ("A\nB\nA", "AA", []),
    ],
)
def test_the_longest_sequence_in_order_counts(answer: str, sections: str, found: list[str]) -> None:
    form = {"type": "text", "sections": list(sections)}
    present = scored(answer, **form).counts["sections_present"]
    assert present == (len(sections) - len(found), len(sections))
    assert messages(answer, **form) == found


@pytest.mark.parametrize(
    ("answer", "limits", "found"),
    [
        ("  one\n\ntwo  ", {"words": {"min": 2, "max": 2}}, []),
        ("one two three four", {"words": {"max": 3}}, ["4 words, expected at most 3"]),
        ("", {"words": {"min": 1}}, ["0 words, expected at least 1"]),
        (" añb \n", {"characters": {"max": 3}}, []),
        ("a b c", {"characters": {"max": 3}}, ["5 characters, expected at most 3"]),
    ],
)
def test_lengths_are_counted(answer: str, limits: dict[str, Any], found: list[str]) -> None:
    counts = scored(answer, type="text", **limits).counts
    assert counts == {"format_rate": (not found, 1), "length_kept": (not found, 1)}
    assert messages(answer, type="text", **limits) == found


def test_every_check_has_to_pass() -> None:
    form = {"type": "regex", "pattern": r"(?s)# .*", "sections": ["# T", "Specs:"]}
    scorer = format_scorer(RegexFormat.model_validate(form | {"words": {"max": 5}}))
    names = ["format_rate", "pattern_match", "sections_present", "length_kept"]
    assert list(scorer.kinds) == names
    assert scorer.kinds["format_rate"].label == "format valid"
    for answer, pairs in (
        ("# T\nSpecs: a", [(1, 1), (1, 1), (2, 2), (1, 1)]),
        ("# T\nSpecs: a b c d", [(0, 1), (1, 1), (2, 2), (0, 1)]),
    ):
        assert scorer.score(answer, NOTHING).counts == dict(zip(names, pairs, strict=True))
    alone = format_scorer(RegexFormat(type="regex", pattern="a+"))
    assert list(alone.kinds) == ["format_rate"]


def test_an_answer_that_is_too_long_has_nothing_right() -> None:
    result = scored("a" * 1_000_000, type="regex", pattern=".*", words={"max": 10})
    assert result.counts == dict.fromkeys(result.counts, (0, 1))
    assert set(result.counts) == {"format_rate", "pattern_match", "length_kept"}
    assert result.findings[0].message == "more than 200,000 characters"


def test_a_pattern_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcli.evaluation.scorers.format.time_limit", lambda: time_limit(0.2))
    before = signal.getsignal(signal.SIGVTALRM)
    result = scored("a" * 50, type="regex", pattern="(a+)+b")
    assert result.counts["format_rate"] == (0, 1)
    assert result.findings[0].kind == "not scored"
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_answers_are_scored_in_other_threads_too() -> None:
    found = []
    worker = threading.Thread(target=lambda: found.append(matches("a+", "aaa")))
    worker.start()
    worker.join()
    assert found == [True]


PIECES = st.lists(st.sampled_from(["# T", "Specs:", "\n", " ", "x", "é", "\ud800"])).map("".join)


@given(st.text() | PIECES)
def test_any_answer_gets_counts(answer: str) -> None:
    form = {"type": "regex", "pattern": "# .*", "sections": ["# T", "Specs:"]}
    form |= {"words": {"min": 1, "max": 3}, "characters": {"max": 9}}
    counts = scored(answer, **form).counts
    assert counts["pattern_match"] == (re.fullmatch("# .*", answer.strip()) is not None, 1)
    assert all(0 <= numerator <= denominator for numerator, denominator in counts.values())
