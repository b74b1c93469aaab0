"""Answers side by side: marked, tagged, and no more of them than a page can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftcli.artifacts import RunFolder
from ftcli.stages.report import read_figures, write_report
from ftcli.stages.report.marks import LONGEST_TEXT, Shown, findings_of, shown
from ftcli.stages.report.samples import MOST_FAILURES, MOST_ROWS, Samples
from tests.reported import answer, evaluation, finding, save_evaluation, save_run, usual_lines


def samples(folder: Path, lines: list[dict[str, Any]]) -> Samples:
    run = save_run(folder)
    save_evaluation(run, evaluation(rows=len(lines)), lines)
    found = read_figures(run).samples
    assert found is not None
    return found


def joined(text: Shown) -> str:
    return "".join(piece.text for piece in text.pieces)


def test_the_words_that_prove_a_finding_are_marked() -> None:
    text = "A red mug of oak. Holds 2 litres."
    given = answer(
        text,
        findings=[
            finding(text, "2 litres", "number not in the prompt"),
            finding(text, "oak. Holds 2", "banned claim"),
            {"kind": "not JSON", "message": "empty", "start": None, "end": None},
            {"kind": "too long", "message": "…", "start": 5, "end": 4000},
        ],
    )
    found = findings_of(given, placed=True)
    assert [each.tag for each in found] == ["term", "banned", "format", "format"]
    assert [each.span is not None for each in found] == [True, True, False, False]
    whole = shown(text, found)
    assert joined(whole) == text
    marked = [(piece.text, piece.numbers) for piece in whole.pieces if piece.tag]
    assert marked == [("oak. Holds ", ()), ("2", (2,)), (" litres", (1,))]


def test_a_long_text_is_cut_and_says_by_how_much() -> None:
    text = "x" * 1_000_000
    late = {"kind": "number not in the prompt", "message": "", "start": 999_000, "end": 999_009}
    whole = shown(text, findings_of(answer(text, findings=[late]), placed=True))
    assert len(joined(whole)) == LONGEST_TEXT and whole.left_out == 1_000_000 - LONGEST_TEXT


def test_rows_are_tagged_by_what_the_tuned_model_did(tmp_path: Path) -> None:
    found = samples(tmp_path, usual_lines(36))
    tags = {row.number: set(row.tags) for row in found.rows}
    assert tags[2] == {"better"}
    assert tags[6] == {"term", "better"}
    assert tags[8] == {"format", "better"}  # not in the format, but it stops
    assert found.tags["term"] == 6 and found.tags["format"] == 6
    counts = {kind.kind: (kind.tag, dict(kind.answers)) for kind in found.kinds}
    assert counts["number not in the prompt"] == ("term", {"base": 0, "prompted": 0, "tuned": 6})
    assert list(counts) == ["pattern", "number not in the prompt"]
    assert found.faults is not None and (found.faults.answers, found.faults.of) == (0, 36)
    first = next(each for each in found.failures if each.found.tag == "term")
    assert first.excerpt is not None and first.excerpt.marked == "1.7 litres"
    assert first.place == "test.jsonl:6"


@pytest.mark.parametrize("kind", ["other value", "other result", "does not run"])
def test_wrong_content_is_no_fault_of_the_format(tmp_path: Path, kind: str) -> None:
    lines = usual_lines(3)[1:]
    lines[0]["sides"]["tuned"]["findings"] = [{"kind": kind, "message": "it is 4, not 5"}]
    found = samples(tmp_path, lines)
    assert set(found.rows[0].tags) == {"content", "better"}
    assert (found.tags["content"], found.tags["format"]) == (1, 0)
    assert [(each.kind, each.tag) for each in found.kinds] == [(kind, "content")]
    page = write_report(RunFolder(tmp_path / "runs" / "shop")).read_text(encoding="utf-8")
    assert '<input type="checkbox" value="content">wrong content (1)' in page
    assert f'<span class="kind content"><bdi>{kind}</bdi></span>' in page
    assert "failed the format" not in page


def test_a_row_that_got_worse_and_one_that_never_ends(tmp_path: Path) -> None:
    lines = usual_lines(2)
    lines[0]["sides"] = {"base": answer("fine"), "tuned": answer("on and on", stopped=False)}
    lines[1]["sides"]["tuned"] = lines[1]["sides"]["base"]
    found = samples(tmp_path, lines)
    assert set(found.rows[0].tags) == {"endless", "worse"}
    assert set(found.rows[1].tags) == {"endless"}


def test_why_something_could_not_be_looked_at_is_no_failure(tmp_path: Path) -> None:
    lines = usual_lines(3)[1:2]
    lines[0]["sides"]["tuned"]["findings"] = [{"kind": "not looked at", "message": "too slow"}]
    found = samples(tmp_path, lines)
    assert found.failures == () and found.rows[0].tags == ("better",)
    assert found.rows[0].answers[1].findings[0].message == "too slow"


def test_of_many_rows_those_that_fail_are_shown_first(tmp_path: Path) -> None:
    lines = usual_lines(5000)
    found = samples(tmp_path, lines)
    assert found.total == 5000 and len(found.rows) == MOST_ROWS
    assert all({"format", "term"} & set(row.tags) for row in found.rows)
    assert [row.number for row in found.rows] == sorted(row.number for row in found.rows)
    assert len(found.failures) == MOST_FAILURES < found.total_failures
    assert found.file == "eval/answers/0123456789abcdef.jsonl"


def test_long_rows_leave_room_for_fewer(tmp_path: Path) -> None:
    lines = usual_lines(300)
    for line in lines:
        line["sides"]["tuned"] = answer("y" * 20_000)
        line["prompt"] = "x" * 9000
    found = samples(tmp_path, lines)
    assert 100 < len(found.rows) < 300


def test_a_secret_in_an_answer_is_told_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "s3cr3t-of-the-shop")
    text = "The key is s3cr3t-of-the-shop, of oak."
    lines = usual_lines(1)
    lines[0]["sides"]["tuned"] = answer(
        text, findings=[finding(text, "oak", "material not in the prompt")]
    )
    found = samples(tmp_path, lines)
    assert joined(found.rows[0].answers[1].shown) == "The key is ***, of oak."
    assert found.failures[0].excerpt is None  # its place is not that of the masked text


def test_an_evaluation_of_before_kept_its_first_rows_only(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    kept = {"prompt": "p", "reference": "r", "file": "f.jsonl", "line": 3}
    texts = {"base": {"text": "b", "tokens": 1, "stopped": False}}
    texts["tuned"] = {"text": "t", "tokens": 1, "stopped": True}
    report = evaluation(samples=[kept | texts], scores=None, differences=None, answers=None)
    save_evaluation(run, report, None)
    found = read_figures(run).samples
    assert found is not None and not found.judged and found.faults is None
    assert found.rows[0].place == "f.jsonl:3" and found.rows[0].tags == ("better",)
