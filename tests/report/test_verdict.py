"""Every rule of the verdict, which report, card and terminal share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftcli.evaluation.verdicts import NOT_MEASURED, summary_of, verdict_of
from ftcli.report.figures import read_figures
from ftcli.runs.results import EvalResult, ScoreRow
from tests.reported import (
    FORMAT,
    GENERAL,
    ROWS,
    STOPS,
    evaluation,
    of_truth,
    prompted,
    row,
    save_evaluation,
    save_run,
    score,
)

RIGHT = score(0.9, 0.83, 0.94)
LOSS = ROWS[3]


def measured(*others: ScoreRow, **changes: Any) -> EvalResult:
    """A ready model, except for the changes."""
    found = of_truth(RIGHT)
    return evaluation(**found | {"scores": (*found["scores"], *others)} | changes)


def verdicts(*words: str | None) -> tuple[ScoreRow, ...]:
    """Format, endings and loss with these verdicts."""
    pairs = zip((FORMAT, STOPS, LOSS), words, strict=True)
    return tuple(
        row.model_copy(
            update={"tuned_vs_base": row.tuned_vs_base.model_copy(update={"verdict": word})}
        )
        for row, word in pairs
        if row.tuned_vs_base
    )


def test_better_right_and_nothing_lost_is_ready() -> None:
    found = verdict_of(measured())
    assert (found.kind, found.headline, found.reasons) == ("ready", "Ready", ())
    assert found.sentence == (
        "Better: same result, format valid, finished (EOS) and loss. "
        "Measured on 120 held-out rows (test)."
    )


@pytest.mark.parametrize(
    ("words", "changes", "kind", "headline"),
    [
        (("worse", "not significant", "not significant"), {}, "not ready", "Not ready"),
        (("better", "worse", "better"), {"decides_by": "stop_rate"}, "not ready", "Not ready"),
        (("not significant",) * 3, {}, "not better", "Not shown to be better"),
        (("too few rows",) * 3, {}, "not better", "Not shown to be better"),
        (
            ("better", "not significant", "better"),
            {"decides_by": "stop_rate"},
            "not better",
            "Not shown to be better",
        ),
        (("better", "worse", "better"), {}, "check", "Check before use"),
    ],
)
def test_the_first_rule_that_holds_decides(
    words: tuple[str, ...], changes: dict[str, Any], kind: str, headline: str
) -> None:
    found = verdict_of(evaluation(scores=verdicts(*words), **changes))
    assert (found.kind, found.headline) == (kind, headline)


LOST = row("general_text", 2.65, score(2.85), "worse", label="text", unit="perplexity")
LITTLE = row("general_text", 2.65, score(2.67), "worse", label="text", unit="perplexity")
FOLLOWS = row("instructions_followed", 0.8, score(0.5), "worse", label="instructions followed")
REASONS = {
    "not true": (evaluation(), f"{NOT_MEASURED}: read some, or add eval.judge"),
    "plain texts": (measured(calls={}), "No answer was scored: the rows are plain texts"),
    "wrong": (
        evaluation(**of_truth(score(0.25, 0.11, 0.47))),
        "Same result: 25% (11 to 47%) is below the target of 80%",
    ),
    "few rows": (
        evaluation(**of_truth(score(0.9, 0.7, 0.97))),
        "Same result: 90% (70 to 97%) is not shown to reach the target of 80%",
    ),
    "all alike": (
        evaluation(**of_truth(score(1.0, 1.0, 1.0).model_copy(update={"n": 12}))),
        "Same result: 100% (100 to 100%) is not shown to reach the target of 80%",
    ),
    "format": (
        measured(scores=(*of_truth(RIGHT)["scores"][:1],
                         row("format_rate", 0.0, score(0.6, 0.5, 0.7), label="format valid"))),
        "Format valid: 60% (50 to 70%) is below the target of 90%",
    ),
    "stops": (
        measured(scores=(*of_truth(RIGHT)["scores"][:1],
                         row("stop_rate", 0.0, score(0.96, 0.9, 0.99), label="finished (EOS)"))),
        "Finished (EOS): 96% (90 to 99%) is not shown to reach the target of 95%",
    ),
    "worse": (
        measured(row("chrf", 0.5, score(0.4), "worse", unit="value", label="chrF")),
        "Worse than the base: chrF 0.50 → 0.40",
    ),
    "lost": (measured(forgetting=(LOST,)), "Worse than the base: text 14.2 → 17.3"),
    "follows": (
        measured(forgetting=(FOLLOWS,)), "Worse than the base: instructions followed 80% → 50%"
    ),
    "not forgotten": (measured(forgetting=()), "Whether general ability was lost was not measured"),
    "prompted": (
        measured(scores=(*of_truth(RIGHT)["scores"][:1], *prompted("worse"))),
        "The base with a prompt, which needs no training, is better: format valid",
    ),
    "banned": (
        measured(row("banned_phrases", 0.2, score(0.1), better="lower")),
        "10% of the answers have a banned phrase",
    ),
    "trained on": (measured(rows_trained_on=5), "5 of 120 rows ask what the run was trained on: "),
    "chose": (measured(rows_in_validation=120), "These rows chose the checkpoint: set data.test"),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_better_with_something_to_check(name: str) -> None:
    result, reason = REASONS[name]
    found = verdict_of(result)
    assert (found.kind, found.headline) == ("check", "Check before use")
    assert len(found.reasons) == 1 and reason in found.reasons[0], found.reasons


def test_what_is_no_reason() -> None:
    few_banned = row("banned_phrases", 0.2, score(0.04), better="lower")
    length = row("answer_tokens", 101.0, score(72.0), None, unit="value", better=None)
    assert verdict_of(measured(few_banned, length)).kind == "ready"
    slightly = verdict_of(measured(forgetting=(LITTLE,)))
    assert slightly.kind == "ready" and "slightly higher: text" in slightly.sentence
    assert verdict_of(measured(forgetting=GENERAL)).kind == "ready"


def test_before_an_evaluation_the_verdict_says_what_to_do(tmp_path: Path) -> None:
    for state in ("training", "stopped"):
        found = read_figures(save_run(tmp_path, state, state=state, result=None)).verdict("a/b")
        assert (found.kind, found.headline) == ("not finished", "Not finished")
        assert found.sentence == f"The training is not finished ({state}): ftcli train a/b"
    run = save_run(tmp_path)
    found = read_figures(run).verdict("a/b")
    assert (found.kind, found.headline) == ("not evaluated", "Not evaluated yet")
    assert found.sentence.endswith(" was not measured: ftcli eval a/b")
    alone = [each.model_copy(update={"base": None, "tuned_vs_base": None}) for each in ROWS]
    save_evaluation(run, evaluation(scores=alone, forgetting=()))
    found = read_figures(run).verdict("a/b")
    assert (found.kind, found.headline) == ("not compared", "Not compared with its base")


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"data": "test"}, {"data": "other.jsonl", "rows": 999}),
        ({}, {"scores": [each.model_copy(update={"base": None}) for each in ROWS], "rows": 999}),
        ({"rows": 120}, {"rows": 12, "scores": prompted("better")}),
        ({"scores": prompted("better"), "forgetting": ()}, {}),
        ({}, {"forgetting": ()}),
        ({"finished": "2026-01-06"}, {"finished": "2026-01-05"}),
    ],
    ids=["held out", "with the base", "more rows", "with a prompt", "general ability", "newer"],
)
def test_the_evaluation_that_says_most_is_shown_whole(
    tmp_path: Path, more: dict[str, Any], less: dict[str, Any]
) -> None:
    for first, second in (("a", "b"), ("b", "a")):
        run = save_run(tmp_path, first)
        save_evaluation(run, evaluation(**{"key": first, "finished": "2026-01-01"} | more), [])
        save_evaluation(run, evaluation(**{"key": second, "finished": "2026-01-02"} | less), [])
        found = read_figures(run)
        assert found.evaluation is not None and found.evaluation.key == first
        assert [each.key for each in found.others] == [second]
    run.evaluated_last.write_text("a\n")
    save_evaluation(run, evaluation(key="a"), [])
    save_evaluation(run, evaluation(key="b", finished="2027-01-01"), [])
    found = read_figures(run)
    assert found.evaluation is not None and found.evaluation.key == "a"


def test_a_run_without_replay_that_forgot_is_advised_to_replay() -> None:
    advice = "General ability was lost: train again with data.replay: builtin"
    for replay, advised in ((None, True), ("builtin", False)):
        lost = measured(forgetting=(LOST,), replay=replay)
        assert any(advice in reason for reason in verdict_of(lost).reasons) is advised
        assert any(advice in line for line in summary_of(lost)) is advised
    kept = measured(replay=None)
    assert not any(advice in line for line in summary_of(kept))
