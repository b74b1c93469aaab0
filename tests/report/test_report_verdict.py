"""The one sentence: every rule of it, and that it never says more than the intervals."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ftcli.artifacts import RunFolder
from ftcli.metrics.intervals import share_interval
from ftcli.stages.report import read_figures
from ftcli.stages.report.evaluations import evaluations_in
from ftcli.stages.report.plain import Reading
from ftcli.stages.report.verdict import FaultShare, verdict_of
from tests.reported import (
    BASE,
    FORGETTING,
    TUNED,
    evaluation,
    save_evaluation,
    save_run,
    side,
    usual_lines,
    verdicts,
)
from tests.verdicts import judged, lost, of_scores, read


def test_better_and_nothing_lost_is_shipped(tmp_path: Path) -> None:
    found = judged(tmp_path, FaultShare(4, 60))
    assert (found.kind, found.headline, found.reasons) == ("ship", "Ship it.", ())
    assert found.words == (
        "93% (84–97) in “no new number”, measured by you. Better than the base in “in the "
        "format” (2% → 97%), “no new number” (40% → 93%), “stops by itself” (35% → 100%) "
        "and 2 more; nothing shown to be forgotten. Measured on 120 held-out rows (test)."
    )


def test_what_is_not_there_is_asked_for(tmp_path: Path) -> None:
    for state in ("training", "stopped", ""):
        found = verdict_of(state, "runs/shop", None)
        assert found.kind == "not finished" and found.words.endswith("ftcli train runs/shop")
    found = verdict_of("finished", "runs/shop", None)
    assert found.kind == "not evaluated" and found.words.endswith("ftcli eval runs/shop")
    alone = judged(tmp_path, base=None, differences={}, forgetting=None)
    assert alone.kind == "not compared" and alone.words.endswith("ftcli eval runs/shop")


def test_no_difference_shown_is_no_success(tmp_path: Path) -> None:
    found = judged(tmp_path, differences=verdicts(all="no difference shown"))
    assert (found.kind, found.headline) == ("not shown", "Not shown to be better.")
    # 220 rows show it by itself; ((2.638 + 0.842) / (1.960 + 0.842))² of 220 are 339.4.
    assert (
        "about 340 held-out rows would show the difference seen in “exact match” among 6 scores"
        in found.words
    )


def test_rows_advised_are_for_all_scores_and_no_more_than_is_advice(tmp_path: Path) -> None:
    lone = of_scores({"small": (0.01, 0.05)})
    lone["differences"]["tuned_vs_base"]["small"]["rows_to_show"] = 220
    found = verdict_of("finished", "runs/shop", read(tmp_path, lone))
    assert "about 220 held-out rows would show the difference seen in “small”." in found.words
    many = of_scores({f"score {number}": (0.01, 0.05) for number in range(12)})
    for each in many["differences"]["tuned_vs_base"].values():
        each["rows_to_show"] = 90_000
    found = verdict_of("finished", "runs/shop", read(tmp_path, many))
    assert ": hold more rows out, or train longer." in found.words


def test_changes_without_a_better_way_count_for_nothing(tmp_path: Path) -> None:
    unclear = verdicts(all="no difference shown", answer_tokens="better", perplexity="better")
    assert judged(tmp_path, differences=unclear).kind == "not shown"


def test_worse_in_a_score_and_better_in_none(tmp_path: Path) -> None:
    found = judged(tmp_path, differences=verdicts(all="no difference shown", chrf="worse"))
    assert (found.kind, found.headline) == ("worse", "Do not ship it.")
    assert "Worse than the base in “chrF”" in found.words


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "worse": ({"differences": verdicts(chrf="worse")}, "worse than the base in “chrF”"),
    "loss alone": (
        {"differences": verdicts(all="no difference shown", loss="better")},
        "only its loss is shown to be better",
    ),
    "format": (
        {"tuned": side(TUNED | {"format_rate": (0.6, 0.5, 0.7)})},
        "in the format: only 60% (50–70), where 90% is the least to ship with",
    ),
    "stops": (
        {"tuned": side(TUNED | {"stop_rate": (0.9, 0.8, 0.96)})},
        "stops by itself: only 90%",
    ),
    "stops, of few rows": (
        {"rows": 20, "tuned": side(TUNED | {"stop_rate": (1.0, *share_interval(20, 20))})},
        "stops by itself: 100% (84–100), where 95% is the least to ship with: too few rows to say "
        "(20): take more (about 73)",
    ),
    "format, of few rows": (
        {"rows": 60, "tuned": side(TUNED | {"format_rate": (58 / 60, *share_interval(58, 60))})},
        "in the format: 97% (89–99), where 90% is the least to ship with: too few rows to say "
        "(60): take more (about 78)",
    ),
    "no interval": (
        {"tuned": side(TUNED) | {"format_rate_interval": None}},
        "in the format: 97% without its interval, which shows nothing",
    ),
    "forgotten": (
        {"forgetting": lost(change=0.23)},
        "forgotten: general text, perplexity 14.2 → 14.5 (forgets)",
    ),
    "follows no more": (
        {
            "forgetting": FORGETTING
            | {"follows": FORGETTING["follows"] | {"difference": -0.3, "interval": [-0.5, -0.1]}}
        },
        "forgotten: follows unrelated instructions 80% → 75%",
    ),
    "chose": (
        {"rows_chose_checkpoint": True, "data": "validation"},
        "these rows chose the checkpoint",
    ),
    "chose, a part": (
        {"rows_chose_checkpoint": True, "rows_in_validation": 7, "data": "other.jsonl"},
        "7 of 120 rows chose the checkpoint, which flatters it",
    ),
    "trained on": (
        {"rows_trained_on": 5, "data": "other.jsonl"},
        "5 of 120 rows ask what the run was trained on, which flatters it",
    ),
    "trained on, all": (
        {"rows_trained_on": 120, "data": "train.jsonl"},
        "these rows ask what the run was trained on, which flatters it",
    ),
    "prompted": (
        {
            "prompted": side(BASE | {"chrf": (0.6, 0.59, 0.61)}),
            "differences": verdicts()
            | {"tuned_vs_prompted": {"chrf": {"verdict": "worse", "words": "worse"}}},
        },
        "the base with a long prompt, which needs no training, is better in “chrF” (0.60 → 0.50)",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_better_with_a_reason_to_look(tmp_path: Path, name: str) -> None:
    changes, reason = REASONS[name]
    found = judged(tmp_path, **changes)
    assert (found.kind, found.headline) == ("look", "Look before you ship it.")
    assert [each for each in found.reasons if reason in each], found.reasons


def test_answers_with_a_banned_claim(tmp_path: Path) -> None:
    assert judged(tmp_path, FaultShare(6, 60)).kind == "ship"
    found = judged(tmp_path, FaultShare(7, 60))
    assert found.kind == "look" and "7 of 60 answers make a banned claim" in found.reasons[0]


def test_little_is_forgotten_and_said(tmp_path: Path) -> None:
    found = judged(tmp_path, forgetting=lost(change=0.03))
    assert found.kind == "ship"
    assert "little forgotten (general text, perplexity 14.2 → 14.5)" in found.words
    unmeasured = judged(tmp_path, forgetting=None)
    assert unmeasured.kind == "ship" and "what it forgot was not measured" in unmeasured.words


def test_twelve_scores_that_nothing_has_changed_seldom_make_a_headline(tmp_path: Path) -> None:
    chance = random.Random(11)
    headlines = alone = 0
    for _ in range(400):
        report = of_scores({f"score {n}": (chance.gauss(0, 0.05), 0.05) for n in range(12)})
        found = read(tmp_path, report)
        alone += any(row.against["base"].verdict != "no difference shown" for row in found.scores)
        headlines += verdict_of("finished", "runs/shop", found).kind != "not shown"
    assert alone / 400 > 0.4, "each by itself, half of the evaluations would have one"
    assert headlines / 400 <= 0.06


def test_only_what_holds_among_all_scores_is_named(tmp_path: Path) -> None:
    nothing = {f"score {number}": (0.0, 0.05) for number in range(9)}
    report = of_scores(nothing | {"great": (0.3, 0.05), "small": (0.11, 0.05), "bad": (-0.1, 0.05)})
    found = verdict_of("finished", "runs/shop", read(tmp_path, report))
    assert found.kind == "ship" and "“great”" in found.words
    assert "“small”" not in found.words and "“bad”" not in found.words
    assert found.words.endswith(
        "By itself the table finds 1 better and 1 worse besides: among 12 scores chance may do "
        "that."
    )
    lone = of_scores({"small": (0.11, 0.05)})
    assert verdict_of("finished", "runs/shop", read(tmp_path, lone)).kind == "ship"
    many = of_scores(nothing | {"small": (0.11, 0.05)})
    found = verdict_of("finished", "runs/shop", read(tmp_path, many))
    assert found.kind == "not shown" and "finds 1 better besides: among 10 scores" in found.words


def test_parts_of_a_form_are_told_in_the_table_alone(tmp_path: Path) -> None:
    parts = {f"field_f1.{name}": (-0.3, 0.05) for name in ("name", "price")}
    parts |= dict.fromkeys(("json_valid", "sql_runs", "length_kept"), (-0.3, 0.05))
    whole = dict.fromkeys(("field_f1", "format_rate", "execution_match"), (0.3, 0.05))
    report = of_scores(whole | parts)
    report["tuned"] |= side(dict.fromkeys(whole, (0.99, 0.95, 1.0)))
    found = verdict_of("finished", "runs/shop", read(tmp_path, report))
    assert found.kind == "ship" and not found.reasons
    assert [name for name in parts if name in found.words] == []
    # Alone they are all that there is to go by.
    found = verdict_of("finished", "runs/shop", read(tmp_path, of_scores(parts)))
    assert found.kind == "worse" and "“field_f1.name”" in found.words


@pytest.mark.parametrize(
    ("said", "less"),
    [
        ({"rows": 60}, {"rows": 2, "base": None, "differences": {}, "forgetting": None}),
        ({"rows": 60}, {"rows": 60, "base": None, "differences": {}, "forgetting": None}),
        ({"rows": 60}, {"rows": 2}),
        ({"rows": 60}, {"rows": 60, "forgetting": None}),
        ({"rows": 2}, {"rows": 60, "base": None, "differences": {}, "forgetting": None}),
        ({"rows": 2}, {"rows": 900, "data": "other.jsonl"}),
        ({"prompted": side(BASE)}, {}),
        ({"prompted": side(BASE), "forgetting": None}, {}),
        ({"rows": 2}, {"rows": 900, "data": "other.jsonl", "prompted": side(BASE)}),
        ({"rows": 60, "evaluated": "2026-01-03T10:00:00+00:00"}, {"rows": 60}),
    ],
    ids=[
        *("a look", "no base", "few rows", "no forgetting", "base", "held out"),
        *("long prompt", "long prompt, no forgetting", "held out, long prompt", "newest"),
    ],
)
def test_a_lesser_evaluation_takes_no_place(
    tmp_path: Path, said: dict[str, Any], less: dict[str, Any]
) -> None:
    """It may be newer, and of whatever key."""
    run = RunFolder(tmp_path)
    old, new = (
        {"evaluated": "2026-01-01T10:00:00+00:00"},
        {"evaluated": "2026-01-02T10:00:00+00:00"},
    )
    for keys in (("a" * 16, "b" * 16), ("b" * 16, "a" * 16)):
        save_evaluation(run, evaluation(**{**old, **said}), None, key=keys[0])
        save_evaluation(run, evaluation(**{**new, **less}), None, key=keys[1])
        found = evaluations_in(run.evaluations, Reading(tmp_path))
        assert [each.key for each in found] == list(keys)


def test_plain_texts_have_nothing_but_their_loss(tmp_path: Path) -> None:
    plain = {"loss": BASE["loss"], "perplexity": BASE["perplexity"]}
    tuned = {"loss": TUNED["loss"], "perplexity": TUNED["perplexity"]}
    found = judged(tmp_path, base=side(plain), tuned=side(tuned))
    assert found.kind == "look" and found.words.startswith("Better than the base in “loss” (2.31")
    assert found.reasons == (
        "nothing that it writes was measured: its rows are plain texts without answers",
    )


def test_evaluations_of_before_are_judged_by_intervals_that_do_not_meet(tmp_path: Path) -> None:
    scores = {"loss", "format_rate", "chrf"}
    base = {name: BASE[name] for name in scores}
    near = {name: TUNED[name] for name in scores} | {"chrf": (0.18, 0.165, 0.20)}
    old = {"differences": None, "scores": None, "forgetting": None}
    report = evaluation(base=side(base), tuned=side(near), **old)
    found = read(tmp_path, report)
    word = {row.score.name: row.against["base"].verdict for row in found.scores}
    assert word == {"loss": "better", "format_rate": "better", "chrf": "no difference shown"}
    assert verdict_of("finished", "runs/shop", found).kind == "look"
    swapped = read(tmp_path, evaluation(base=side(near), tuned=side(base), **old))
    assert verdict_of("finished", "runs/shop", swapped).kind == "worse"
    few = read(tmp_path, evaluation(rows=8, base=side(base), tuned=side(near), **old))
    word = {row.score.name: row.against["base"].verdict for row in few.scores}
    assert word["loss"] == "no difference shown", "8 losses resampled look surer than they are"
    assert word["format_rate"] == "better"


def test_perplexity_has_no_verdict_of_its_own(tmp_path: Path) -> None:
    """Where an evaluation compares, it is told by the loss; its intervals are not looked at."""
    for word in ("no difference shown", "better", "worse"):
        differences = verdicts(loss=word)
        del differences["tuned_vs_base"]["perplexity"]
        row = read(tmp_path, evaluation(differences=differences)).row("perplexity")
        assert row is not None
        found = row.against["base"]
        assert (found.verdict, found.words) == (word, f"{word}, as the loss")
        assert found.difference is None
    del differences["tuned_vs_base"]["loss"]
    found_rows = read(tmp_path, evaluation(differences=differences))
    for name in ("perplexity", "loss"):
        row = found_rows.row(name)
        assert row is not None and row.against == {}


def test_equal_scores_count_once(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    report = of_scores({"form": (0.3, 0.05), "query": (0.3, 0.05), "other": (0.3, 0.05)})
    lines = usual_lines(12)
    for number, line in enumerate(lines):
        for name, each in line["sides"].items():
            hit = [float(name == "tuned"), 1.0]
            other = [float(number % 2), 1.0]
            each["counts"] = {"form": hit, "query": hit, "other": other}
    save_evaluation(run, report | {"rows": 12}, lines)
    words = read_figures(run).verdict.words
    assert "“form” (50% → 80%)" in words and "“other” (50% → 80%)" in words
    assert "“query”" not in words
    lines[5]["sides"]["base"]["counts"]["query"] = [1.0, 1.0]
    save_evaluation(run, report | {"rows": 12}, lines)
    assert "“query” (50% → 80%)" in read_figures(run).verdict.words
