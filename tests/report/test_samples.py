"""Answers side by side: marked, tagged, and no more of them than a page can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.report.figures import read_figures
from ftcli.report.samples import LONGEST_TEXT, MOST_ROWS, Samples, Tag, marked
from ftcli.runs.results import Answer, AnsweredRow, EvalResult, Finding
from tests.outline import outline
from tests.reported import (
    ROWS,
    answer,
    evaluation,
    finding,
    of_truth,
    row,
    save_evaluation,
    save_run,
    score,
    usual_lines,
)


def samples(folder: Path, lines: list[AnsweredRow], result: EvalResult | None = None) -> Samples:
    run = save_run(folder)
    save_evaluation(run, result or evaluation(rows=len(lines)), lines)
    found = read_figures(run).samples
    assert found is not None
    return found


def tags_of(folder: Path, base: Answer, tuned: Answer, result: EvalResult) -> set[Tag]:
    line = usual_lines(1)[0].model_copy(update={"sides": {"base": base, "tuned": tuned}})
    return set(samples(folder, [line], result).rows[0].tags)


def test_what_was_found_is_marked_and_numbered() -> None:
    text = "A red mug of oak. Holds 2 litres."
    nowhere = Finding(kind="not JSON", message="empty")
    beyond = Finding(kind="too long", message="…", start=5, end=4000)
    found = (finding(text, "2 litres"), finding(text, "oak. Holds 2"), nowhere, beyond)
    shown = marked(text, found)
    assert "".join(piece.text for piece in shown) == text
    pieces = [(piece.text, piece.numbers) for piece in shown if piece.marked]
    assert pieces == [("oak. Holds ", ()), ("2", (2,)), (" litres", (1,))]


def test_a_long_text_is_cut() -> None:
    late = Finding(kind="number", message="", start=999_000, end=999_009)
    shown = marked("x" * 1_000_000, (late,))
    assert [(piece.text, piece.marked) for piece in shown] == [("x" * LONGEST_TEXT, False)]


def test_rows_are_tagged_by_what_the_tuned_model_did(tmp_path: Path) -> None:
    found = samples(tmp_path, usual_lines(36))
    tags = {each.row.number: set(each.tags) for each in found.rows}
    assert tags[2] == {"better"}
    assert tags[6] == {"terms", "better"}
    assert tags[8] == {"format", "better"}  # not in the format, but it finishes
    assert (found.tags["terms"], found.tags["format"], found.tags["worse"]) == (8, 6, 0)


def test_wrong_banned_unfinished_and_worse(tmp_path: Path) -> None:
    truth = of_truth(score(0.9))
    cost = row("cost", 1.0, score(0.5), unit="value", better="lower", own=True)
    banned = row("banned_phrases", 0.2, score(0.1), better="lower")
    result = evaluation(
        rows=1,
        scores=(*truth["scores"], banned, cost),
        truth_measured_by=("execution_match", "cost"),
    )
    right = {"execution_match": (1.0, 1.0), "banned_phrases": (0.0, 1.0), "cost": (0.5, 1.0)}
    wrong = {"execution_match": (0.0, 1.0), "banned_phrases": (1.0, 1.0), "cost": (0.5, 1.0)}
    good, bad = answer("a", counts=right), answer("b", stopped=False, counts=wrong)
    assert tags_of(tmp_path / "1", good, bad, result) == {"wrong", "banned", "unfinished", "worse"}
    assert tags_of(tmp_path / "2", bad, good, result) == {"better"}
    assert tags_of(tmp_path / "3", good, good, result) == set()
    uncounted = answer("c", counts={"execution_match": (0.0, 0.0)})
    assert tags_of(tmp_path / "4", good, uncounted, result) == set()


def test_of_many_rows_those_with_a_finding_are_shown_first(tmp_path: Path) -> None:
    found = samples(tmp_path, usual_lines(3000))
    assert found.total == 3000 and len(found.rows) == MOST_ROWS
    assert all({"format", "terms"} & set(row.tags) for row in found.rows)
    numbers = [each.row.number for each in found.rows]
    assert numbers == sorted(numbers)


def test_a_secret_in_an_answer_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "s3cr3t-of-the-shop")
    text = "The key is s3cr3t-of-the-shop, of oak."
    tuned = answer(text, findings=(finding(text, "oak"),))
    line = usual_lines(1)[0].model_copy(update={"sides": {"tuned": tuned}})
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(rows=1, samples=(line,)), [line])
    page = outline(run).text
    # Unmarked: the places are those of the text as it was.
    assert page.count("The key is ***, of oak.") == 2 and "s3cr3t" not in page


def test_rows_to_read_are_shown_where_nothing_says_whether_they_are_true(tmp_path: Path) -> None:
    run, five = save_run(tmp_path), tuple(usual_lines(5))
    save_evaluation(run, evaluation(samples=five))
    page = outline(run)
    assert "Read these five" in page.text and len(page.all("h3")) == 5
    save_evaluation(run, evaluation(**of_truth(score(0.9)), samples=five))
    page = outline(run)
    assert "Read these" not in page.text and not page.all("h3")


def test_plain_texts_have_no_samples(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(calls={}, scores=ROWS[3:4]))
    assert read_figures(run).samples is None
