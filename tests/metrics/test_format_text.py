from __future__ import annotations

import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.metrics.format import format_scorer, time_limit
from ftcli.metrics.scorer import ExampleResult, Question
from ftcli.recipe import RegexFormat, TextFormat

NOTHING = Question("", "", "")


def judged(answer: str, **form: Any) -> ExampleResult:
    wanted = RegexFormat if "pattern" in form else TextFormat
    return format_scorer(wanted(**form), Path()).score(answer, NOTHING)


def matches(pattern: str, answer: str) -> bool:
    return judged(answer, type="regex", pattern=pattern).counts["format_rate"] == (1, 1)


def proofs(answer: str, said: ExampleResult) -> list[str]:
    return [answer[f.start : f.end] for f in said.findings if f.start is not None]


@pytest.mark.parametrize(
    ("pattern", "answer", "fits"),
    [
        (r"# [^\n]+\n.+", "# Title\nBody", True),
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
def test_a_pattern_takes_the_whole_answer(pattern: str, answer: str, fits: bool) -> None:
    assert matches(pattern, answer) is fits


def test_a_pattern_alone_has_one_score() -> None:
    judge = format_scorer(RegexFormat(type="regex", pattern="a+"), Path())
    assert list(judge.kinds) == ["format_rate"]
    assert judge.score("aa", NOTHING).counts == {"format_rate": (1, 1)}


@pytest.mark.parametrize(
    ("answer", "proof"),
    [(" Sure! yes", ["Sure! "]), ("yes and no\n", [" and no"]), ("maybe", [])],
)
def test_what_stands_around_a_match_is_marked(answer: str, proof: list[str]) -> None:
    said = judged(answer, type="regex", pattern="yes")
    assert len(said.findings) == 1
    assert proofs(answer, said) == proof


@pytest.mark.parametrize(
    ("line", "section", "begun"),
    [
        ("## Materials", "## Materials", True),
        ("## Materials and care", "## Materials", True),
        ("## Materialschlacht", "## Materials", False),
        (" ## Materials", "## Materials", False),
        ("### Materials", "## Materials", False),
        ("## materials", "## Materials", False),
        ("Specs: 10 cm", "Specs:", True),
        ("# Any title", "# ", True),
        ("- oak", "-", True),
    ],
)
def test_a_line_begins_a_section(line: str, section: str, begun: bool) -> None:
    said = judged(f"first\n{line}\nlast", type="text", sections=[section])
    assert said.counts["sections_present"] == (float(begun), 1)
    assert said.counts["format_rate"] == (float(begun), 1)


@pytest.mark.parametrize(
    ("answer", "found", "messages"),
    [
        ("A\nB\nC", 3, []),
        ("A\nx\nB\ny\nC\nA", 3, []),
        ("A\nC", 2, ["B: is missing"]),
        ("C\nA\nB", 2, ["C: stands out of order"]),
        ("", 0, ["A: is missing", "B: is missing", "C: is missing"]),
    ],
)
def test_sections_stand_in_order(answer: str, found: int, messages: list[str]) -> None:
    said = judged(answer, type="text", sections=["A", "B", "C"])
    assert said.counts["sections_present"] == (found, 3)
    assert [finding.message for finding in said.findings] == messages


@pytest.mark.parametrize(("answer", "found"), [("C\nB\nA", 1), ("B\nA\nC", 2)])
def test_of_sections_in_another_order_most_are_kept(answer: str, found: int) -> None:
    said = judged(answer, type="text", sections=["A", "B", "C"])
    assert said.counts["sections_present"] == (found, 3)
    assert len(said.findings) == 3 - found


def test_the_same_section_twice_needs_two_lines() -> None:
    once = judged("A\nB", type="text", sections=["A", "A"])
    assert once.counts["sections_present"] == (1, 2)
    twice = judged("A\nB\nA", type="text", sections=["A", "A"])
    assert twice.counts["sections_present"] == (2, 2)


def test_a_section_out_of_order_is_marked() -> None:
    answer = "## B two\n## A"
    said = judged(answer, type="text", sections=["## A", "## B"])
    assert len(proofs(answer, said)) == 1


@pytest.mark.parametrize(
    ("answer", "words", "kept"),
    [
        ("one two three", {"max": 3}, True),
        ("one two three four", {"max": 3}, False),
        ("  one\n\ntwo  ", {"min": 2, "max": 2}, True),
        ("one", {"min": 2}, False),
        ("", {"min": 0, "max": 1}, True),
        ("", {"min": 1}, False),
    ],
)
def test_words_are_counted(answer: str, words: dict[str, int], kept: bool) -> None:
    said = judged(answer, type="text", words=words)
    assert said.counts == {"format_rate": (kept, 1), "length_kept": (kept, 1)}


def test_what_is_too_long_is_marked() -> None:
    answer = " one two  three four \n"
    assert proofs(answer, judged(answer, type="text", words={"max": 2})) == ["  three four"]
    assert proofs(answer, judged(answer, type="text", characters={"max": 3})) == [
        " two  three four"
    ]
    said = judged(answer, type="text", characters={"max": 3})
    assert said.findings[0].message == "19 characters; at most 3 are asked for"


def test_every_part_has_to_hold() -> None:
    form = {"type": "regex", "pattern": r"(?s)# .*", "sections": ["# T", "Specs:"]}
    form |= {"words": {"max": 5}}
    judge = format_scorer(RegexFormat.model_validate(form), Path())
    assert list(judge.kinds) == ["format_rate", "pattern_match", "sections_present", "length_kept"]
    assert judge.score("# T\nSpecs: a", NOTHING).counts == {
        "format_rate": (1, 1),
        "pattern_match": (1, 1),
        "sections_present": (2, 2),
        "length_kept": (1, 1),
    }
    assert judge.score("# T\nSpecs: a b c d", NOTHING).counts == {
        "format_rate": (0, 1),
        "pattern_match": (1, 1),
        "sections_present": (2, 2),
        "length_kept": (0, 1),
    }


def test_an_answer_without_end_is_not_looked_into() -> None:
    said = judged("a" * 1_000_000, type="regex", pattern=".*", words={"max": 10})
    assert said.counts == {"format_rate": (0, 1), "pattern_match": (0, 1), "length_kept": (0, 1)}
    assert said.findings[0].message == "more than 200,000 characters"


def test_an_expression_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = time_limit.within
    monkeypatch.setattr("ftcli.metrics.format.within", lambda: limit(0.2))
    before = signal.getsignal(signal.SIGVTALRM)
    said = judged("a" * 50, type="regex", pattern="(a+)+b")
    assert said.counts == {"format_rate": (0, 1)}
    assert said.findings[0].kind == "not looked at"
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_answers_are_judged_in_other_threads_too() -> None:
    found = []
    worker = threading.Thread(target=lambda: found.append(matches("a+", "aaa")))
    worker.start()
    worker.join()
    assert found == [True]


PIECES = st.lists(st.sampled_from(["# T", "Specs:", "\n", " ", "x", "é", "\ud800"])).map("".join)


@given(st.text() | PIECES)
def test_any_answer_gets_a_judgement(answer: str) -> None:
    form = {"type": "regex", "pattern": "# .*", "sections": ["# T", "Specs:"]}
    form |= {"words": {"min": 1, "max": 3}, "characters": {"max": 9}}
    said = judged(answer, **form)
    holds = re.fullmatch("# .*", answer.strip()) is not None
    assert said.counts["pattern_match"] == (holds, 1)
    for top, bottom in said.counts.values():
        assert 0 <= top <= bottom
    for finding in said.findings:
        if finding.start is not None and finding.end is not None:
            assert 0 <= finding.start < finding.end <= len(answer)
