"""What `ftcli eval` shows of an evaluation, as wide as the terminal is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import evaluate_view
from ftcli.metrics.scores import compared, mean_of, with_interval
from ftcli.stages.evaluate import EvalResult
from ftcli.stages.evaluate.sides import difference_json
from tests.reported import KEY, evaluation, save_evaluation, save_run, usual_lines

Sides = Mapping[str, Mapping[str, Sequence[float]]]
RISING = [float(number) for number in range(40)]
LONG = ["share of the answers that name the product early", "share of the answers that are short"]


def report_of(sides: Sides) -> dict[str, Any]:
    """As an evaluation writes it, of the values of every row: side → score → values."""
    counts = {
        side: {name: mean_of(values) for name, values in scores.items()}
        for side, scores in sides.items()
    }
    names = list(sides["tuned"])
    report: dict[str, Any] = {
        "rows": len(sides["tuned"][names[0]]),
        "rows_chose_checkpoint": False,
        "scores": {name: {"label": name, "unit": "value", "better": "higher"} for name in names},
        "counted": {
            side: {name: {"rows": each.rows, "hits": False} for name, each in scores.items()}
            for side, scores in counts.items()
        },
        "differences": {},
        "samples": [],
        "answers": f"answers/{KEY}.jsonl",
    }
    for side, scores in counts.items():
        report[side] = {}
        for name, each in scores.items():
            report[side] |= with_interval(name, each.value, each.interval())
        if side != "tuned":
            found = {
                name: compared(scores[name], counts["tuned"][name], "higher") for name in names
            }
            report["differences"][f"tuned_vs_{side}"] = {
                name: difference_json(each) for name, each in found.items() if each is not None
            }
    return report


@pytest.fixture
def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    def lines(report: dict[str, Any], columns: int = 80, folder: Path = tmp_path) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        evaluate_view.show(EvalResult(folder, report, stored=False, scored={}))
        return capsys.readouterr().out.splitlines()

    return lines


def test_too_few_rows_are_said_once_and_ask_for_no_more(shown: Any) -> None:
    report = report_of(
        {
            "base": {"a": [1.0, 2, 3, 4], "b": [5.0] * 4},
            "tuned": {"a": [8.0, 9, 9, 9], "b": [5.0] * 4},
        }
    )
    found = report["differences"]["tuned_vs_base"]["a"]
    assert found["verdict"] == "no difference shown" and found["interval"][0] > 0
    assert found["words"] == "4 rows are too few to say"
    for columns in (80, 140):
        text = "\n".join(shown(report, columns))
        assert "too few rows" in text and "not shown" not in text and "the same" in text
        assert "4 rows are too few for a verdict" in text
        assert "take more" not in text and "no difference shown" not in text


def test_a_score_of_few_rows_among_enough_rows(shown: Any) -> None:
    report = report_of(
        {"base": {"a": RISING, "b": RISING}, "tuned": {"a": RISING[::-1], "b": RISING[::-1]}}
    )
    report["counted"]["tuned"]["b"]["rows"] = 9
    text = "\n".join(shown(report))
    assert text.count("too few rows") == 1 and text.count("not shown") == 1
    assert "no difference shown with 40 rows in a; take more" in text


def test_prompting_is_spoken_of_once_where_nothing_is_shown(shown: Any) -> None:
    unclear = {"a": RISING[::-1]}
    report = report_of({"base": {"a": RISING}, "prompted": {"a": RISING}, "tuned": unclear})
    lines = shown(report)
    assert sum(line.startswith("tuned against prompted: ") for line in lines) == 1
    better = {"a": [value + 5 for value in RISING]}
    report = report_of({"base": {"a": RISING}, "prompted": {"a": RISING}, "tuned": better})
    assert "tuned against prompted: better in a" in shown(report)


def test_fewer_listed_words_are_no_gain_over_prompting(shown: Any) -> None:
    more, fewer = [1.0] * 30 + [0.0] * 10, [0.0] * 40
    report = report_of(
        {side: {"invents": more, "a": RISING} for side in ("base", "prompted")}
        | {"tuned": {"invents": fewer, "a": [value + 5 for value in RISING]}}
    )
    report["differences"]["tuned_vs_prompted"]["invents"]["verdict"] = "better"
    assert "tuned against prompted: better in a" in shown(report)


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_three_sides_say_between_which_the_difference_is(shown: Any, columns: int) -> None:
    sides = {side: {"a": RISING} for side in ("base", "prompted", "tuned")}
    assert shown(report_of(sides), columns)[0].endswith("tuned – base")


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_long_names_of_scores_fit(shown: Any, columns: int) -> None:
    scores = dict.fromkeys(LONG, RISING)
    lines = shown(report_of(dict.fromkeys(("base", "prompted", "tuned"), scores)), columns)
    assert max(map(len, lines[:-1])) <= columns  # the last one is a path
    labels = [line.strip().partition("   ")[0] for line in lines[1:3]]
    assert labels == LONG if columns == 200 else all("…" in label for label in labels)
    assert len(set(labels)) == 2


def test_the_page_is_named_where_it_shows_this_evaluation(tmp_path: Path, shown: Any) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(), usual_lines(4) * 30)
    report = report_of({"base": {"a": RISING}, "tuned": {"a": RISING}})
    own_file = f"answers  {run.evaluations}/answers/{KEY}.jsonl"
    assert shown(report, folder=run.path)[-1] == own_file  # no page
    run.report.write_text("")
    assert shown(report, folder=run.path)[-1] == f"all rows side by side: {run.report}"
    small = report | {"answers": "answers/fedcba9876543210.jsonl"}
    save_evaluation(run, evaluation(rows=3), usual_lines(3), key="fedcba9876543210")
    assert shown(small, folder=run.path)[-2:] == [
        f"answers  {run.evaluations}/answers/fedcba9876543210.jsonl",
        "the page shows another evaluation, that of 120 rows",
    ]
    assert shown(report, folder=run.path)[-1] == f"all rows side by side: {run.report}"
