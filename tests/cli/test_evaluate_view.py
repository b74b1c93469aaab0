"""What `ftcli eval` shows of an evaluation, as wide as the terminal is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ftcli.cli import evaluate_view
from ftcli.evaluation.run_evaluation import EvaluatedRun
from ftcli.runs.results import EvalResult
from tests.reported import evaluation, prompted, row, save_run, score, usual_lines

Shown = Callable[..., list[str]]


@pytest.fixture
def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shown:
    run = save_run(tmp_path)

    def lines(result: EvalResult, columns: int = 80) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        evaluate_view.show(EvaluatedRun(run, result, stored=False))
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
@pytest.mark.parametrize("scores", [None, "prompted"])
def test_it_fits(shown: Shown, columns: int, scores: str | None) -> None:
    changes = {"scores": prompted("worse"), "examples": 5} if scores else {}
    lines = shown(evaluation(**changes), columns)
    assert max(map(len, lines[:-2])) <= columns  # the last two hold paths
    text = "\n".join(lines)
    assert "better" in text and "general ability (forgetting)" in text
    assert ("tuned against prompted" in text) is bool(scores)
    assert "rows better / worse" in text or columns < 120


def test_the_verdicts_of_the_table_and_of_the_sentence_are_one(shown: Shown) -> None:
    result = evaluation()
    lines = shown(result, 120)
    for each in result.shown_rows:
        (line,) = [line for line in lines if line.strip().startswith(f"{each.label}  ")]
        assert each.tuned_vs_base is not None
        assert f"   {each.tuned_vs_base.verdict or ''}   " in line
    sentence = next(line for line in lines if line.startswith("Better: "))
    better = [e.label for e in result.every_row if e.tuned_vs_base.verdict == "better"]  # type: ignore[union-attr]
    assert all(label in sentence for label in better)
    assert any(
        line.startswith("Nothing checked whether the answers are correct: ") for line in lines
    )
    assert any(
        line.endswith("can show differences of 13 percentage points or more.") for line in lines
    )


def test_too_few_rows_are_reported_once(shown: Shown) -> None:
    text = "\n".join(shown(evaluation(rows=4)))
    assert text.count("4 held-out rows (test) are too few for a verdict: 10 at least.") == 1


@pytest.mark.parametrize("columns", [80, 120])
def test_long_names_of_scores_are_cut_in_their_middle(shown: Shown, columns: int) -> None:
    names = ["share of the answers that name the product", "share of the answers that are short"]
    scores = tuple(row(f"own{n}", 0.5, score(0.6), label=name) for n, name in enumerate(names))
    lines = shown(evaluation(scores=scores, forgetting=()), columns)
    labels = [line.strip().partition("  ")[0] for line in lines[1:3]]
    assert len(set(labels)) == 2 and all("…" in label for label in labels)


def test_the_next_command_is_last(shown: Shown) -> None:
    lines = shown(evaluation())
    assert lines[-3] == "Check before use."
    assert lines[-2].startswith("all rows side by side: ")
    assert lines[-1].startswith("next   ftcli generate ")
    worse = row("format_rate", 0.9, score(0.5), "worse")
    assert shown(evaluation(scores=(worse,)))[-1].endswith(" --open")


def test_samples_are_shown_shortly_and_before_the_table(shown: Shown) -> None:
    samples = usual_lines(3)
    long = samples[0].model_copy(update={"prompt": "\n".join(f"line {n}" for n in range(40))})
    lines = shown(evaluation(samples=(long, *samples[1:])))
    table = next(n for n, line in enumerate(lines) if line.strip().startswith("120 held-out rows"))
    assert max(n for n, line in enumerate(lines) if line.startswith("prompt  ")) < table
    assert sum(line.startswith("prompt  ") for line in lines) == 2
    assert "  line 9" in lines and "  line 10" not in lines and "  …" in lines


def test_an_empty_answer_is_shown_as_empty() -> None:
    shown = evaluate_view.side_by_side("", "Hi?", {"base": ("", ""), "tuned": ("Yes.", "")})
    *_, last, end = shown.split("\n")
    assert last.split() == ["(empty)", "Yes."] and end == ""
