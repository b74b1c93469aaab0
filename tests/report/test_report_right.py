"""Whether answers are right: what measures it, what is enough, and what is said of few rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftcli.metrics.intervals import share_interval
from ftcli.stages.report import read_figures
from ftcli.stages.report.verdict import verdict_of
from tests.reported import (
    BASE,
    SCORES,
    TUNED,
    answer,
    evaluation,
    finding,
    save_evaluation,
    save_run,
    side,
    usual_lines,
    verdicts,
)
from tests.verdicts import judged, lost, of_scores, read

RIGHT = {
    "execution_match": "same result",
    "sql_match": "spelt as the reference",
    "field_f1": "field F1",
    "field_accuracy": "fields right",
}


def rightly(tuned: dict[str, tuple[float, float, float]], **changes: Any) -> dict[str, Any]:
    """An evaluation with scores of whether answers are right, all far better than the base's."""
    kinds = {n: {"label": RIGHT[n], "unit": "share", "better": "higher"} for n in tuned}
    base = dict.fromkeys(tuned, (0.0, 0.0, 0.03))
    told = {"difference": 0.2, "interval": [0.1, 0.3], "verdict": "better", "words": "better"}
    differences = verdicts()
    differences["tuned_vs_base"] |= {name: dict(told) for name in tuned}
    parts = {
        "base": side(BASE | base),
        "tuned": side(TUNED | tuned),
        "scores": evaluation()["scores"] | kinds,
        "differences": differences,
    }
    return evaluation(**{**parts, **changes})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("execution_match", "have the same result"),
        ("sql_match", "are spelt as the reference"),
        ("field_f1", "by field F1 against the reference"),
        ("field_accuracy", "of the fields are right"),
    ],
)
def test_a_model_that_is_mostly_wrong_is_not_shipped(tmp_path: Path, name: str, words: str) -> None:
    """However much better than its base it is."""
    wrong = read(tmp_path, rightly({name: (0.25, 0.11, 0.47)}))
    found = verdict_of("finished", "runs/shop", wrong)
    assert (found.kind, found.headline) == ("look", "Look before you ship it.")
    assert found.words.startswith(f"Only 25% (11–47) {words}. Better than the base in ")
    assert found.reasons == (
        f"{RIGHT[name]}: only 25% (11–47), where 80% is the least to ship with",
    )
    right = read(tmp_path, rightly({name: (0.9, 0.83, 0.94)}))
    found = verdict_of("finished", "runs/shop", right)
    assert (found.kind, found.reasons) == ("ship", ())
    assert found.words.startswith(f"90% (83–94) {words}. Better than the base in ")
    few = read(tmp_path, rightly({name: (0.9, 0.7, 0.97)}, rows=20))
    found = verdict_of("finished", "runs/shop", few)
    assert found.kind == "look" and "too few rows to say (20): take more" in found.reasons[0]


def test_of_several_scores_of_the_answers_the_surest_counts(tmp_path: Path) -> None:
    good, bad = (0.9, 0.83, 0.94), (0.25, 0.11, 0.47)
    report = rightly({"sql_match": bad, "execution_match": good})
    found = verdict_of("finished", "runs/shop", read(tmp_path, report))
    assert found.kind == "ship" and found.words.startswith("90% (83–94) have the same result. ")
    report = rightly({"field_f1": good, "field_accuracy": bad})
    found = verdict_of("finished", "runs/shop", read(tmp_path, report))
    assert found.kind == "ship" and found.words.startswith("90% (83–94) by field F1 against the ")


NOT_MEASURED = (
    "whether the answers are true was not measured: read some, or measure it by eval.format of "
    "type json or sql, or --scores"
)


def without_right(**changes: Any) -> dict[str, Any]:
    """An evaluation far better than the base in form and overlap alone."""
    kinds = {name: kind for name, kind in SCORES.items() if name != "faithful_rate"}
    return evaluation(**{"scores": kinds, **changes})


def test_nothing_is_shipped_whose_answers_nobody_has_looked_at(tmp_path: Path) -> None:
    found = verdict_of("finished", "runs/shop", read(tmp_path, without_right()))
    assert (found.kind, found.reasons) == ("look", (NOT_MEASURED,))
    assert found.words.startswith(
        "Whether the answers are true was not measured. Better than the base in “in the format”"
    )
    for kind, changes in (
        ("worse", {"differences": verdicts(all="worse")}),
        ("not shown", {"differences": verdicts(all="no difference shown")}),
        ("not compared", {"base": None, "differences": {}}),
    ):
        found = verdict_of("finished", "runs/shop", read(tmp_path, without_right(**changes)))
        assert found.kind == kind
        assert found.words.startswith("Whether the answers are true was not measured. ")


def labelled(references: list[str]) -> list[dict[str, Any]]:
    lines = usual_lines(len(references))
    for line, reference in zip(lines, references, strict=True):
        line["reference"] = reference
    return lines


@pytest.mark.parametrize(
    ("references", "known"),
    [
        (["refund", " exchange\n", "other"] * 10, True),
        (["refund", "exchange", "a question of its own"] + ["other"] * 9, True),
        ([str(number) for number in range(12)], False),
        ([str(number % 21) for number in range(84)], False),
        ([str(number % 20) for number in range(60)], True),
        (["refund", "exchange"] * 6 + ["a reason of more words than any label has " * 2], False),
        (["refund", "two\nlines"] * 6, False),
        (["refund", ""] * 6, False),
    ],
    ids=["labels", "a rare one", "numbers", "21", "20", "a long one", "lines", "empty"],
)
def test_an_exact_match_tells_whether_a_label_is_right(
    tmp_path: Path, references: list[str], known: bool
) -> None:
    run = save_run(tmp_path)
    tuned = side(TUNED | {"exact_match": (0.9, 0.83, 0.94)})
    report = without_right(rows=len(references), tuned=tuned)
    save_evaluation(run, report, labelled(references))
    found = read_figures(run).verdict
    if known:
        assert found.words.startswith("90% (83–94) have the label of the data. Better than")
    else:
        assert found.words.startswith("Whether the answers are true was not measured. ")
    assert (NOT_MEASURED in found.reasons) is not known


def test_a_label_that_is_mostly_wrong_is_not_shipped(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, without_right(rows=30), labelled(["refund", "exchange", "other"] * 10))
    found = read_figures(run).verdict
    assert found.kind == "look" and found.words.startswith("Only 2% (0–9) have the label")
    assert "exact match: only 2% (0–9), where 80% is the least to ship with" in found.reasons


OF_WORDS = ("invents", "claims_supported")


@pytest.mark.parametrize("name", OF_WORDS)
@pytest.mark.parametrize("verdict", ["better", "worse", "no difference shown"])
@pytest.mark.parametrize("others", ["better", "worse", "no difference shown"])
def test_no_verdict_rests_on_a_list_of_words(
    tmp_path: Path, name: str, verdict: str, others: str
) -> None:
    """Whatever it says, of whichever side: the verdict is that of an evaluation without it."""
    plain = without_right(prompted=side(BASE), differences=verdicts(all=others))
    plain["differences"]["tuned_vs_prompted"] = {}
    listed = without_right(prompted=side(BASE), differences=verdicts(all=others))
    listed["scores"][name] = {"label": "of words", "unit": "share", "better": "lower"}
    told = {"difference": -0.3, "interval": [-0.4, -0.2], "verdict": verdict, "words": verdict}
    listed["differences"]["tuned_vs_base"][name] = told | {"rows_to_show": 30}
    listed["differences"]["tuned_vs_prompted"] = {name: told}
    for each in ("base", "prompted", "tuned"):
        listed[each] |= side({name: (0.9, 0.8, 0.95)})
    found = verdict_of("finished", "runs/shop", read(tmp_path, listed))
    assert found == verdict_of("finished", "runs/shop", read(tmp_path, plain))
    assert found.words.startswith("Whether the answers are true was not measured. ")


def test_marked_words_are_no_reason_and_forbidden_ones_are(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    lines = usual_lines(30)
    for line in lines:
        text = line["sides"]["tuned"]["text"] + " In oak."
        marked = [finding(text, "oak", "material not in the prompt")]
        line["sides"]["tuned"] = answer(text, findings=marked)
    save_evaluation(run, evaluation(rows=30), lines)
    assert read_figures(run).verdict.kind == "ship"
    for line in lines[:4]:
        line["sides"]["tuned"]["findings"][0]["kind"] = "banned claim"
    save_evaluation(run, evaluation(rows=30), lines)
    assert read_figures(run).verdict.reasons == ("4 of 30 answers make a banned claim",)


def test_a_score_of_the_users_own_is_no_limit(tmp_path: Path) -> None:
    report = of_scores({"names_the_product": (-0.3, 0.01), "other": (0.3, 0.01)})
    found = verdict_of("finished", "runs/shop", read(tmp_path, report))
    assert [each for each in found.reasons if "the least" in each] == []
    assert found.words.startswith(
        "20% (40–60) in “names_the_product”, 80% (40–60) in “other”, measured by you. "
    )
    many = of_scores({f"score {number}": (0.3, 0.01) for number in range(5)})
    found = verdict_of("finished", "runs/shop", read(tmp_path, many))
    assert found.kind == "ship" and "in “score 2”, 2 more, measured by you. " in found.words
    # A length, which has no better way, says nothing of that.
    for kind in report["scores"].values():
        kind["better"] = None
    found = verdict_of("finished", "runs/shop", read(tmp_path, report))
    assert found.words.startswith("Whether the answers are true was not measured. ")


def test_fields_that_are_all_right_in_few_rows_show_little(tmp_path: Path) -> None:
    """Resampling rows that are all alike gives an interval of no width."""
    for rows, kind in ((12, "look"), (120, "ship")):
        report = rightly({"field_accuracy": (1.0, 1.0, 1.0)}, rows=rows)
        found = verdict_of("finished", "runs/shop", read(tmp_path, report))
        assert found.kind == kind
        assert found.words.startswith("100% (all rows alike) of the fields are right")


def test_how_often_it_is_right_is_said_in_every_verdict(tmp_path: Path) -> None:
    bad = {"execution_match": (0.25, 0.11, 0.47)}
    for kind, changes in (
        ("worse", {"differences": verdicts(all="worse")}),
        ("not shown", {"differences": verdicts(all="no difference shown")}),
        ("not compared", {"base": None, "differences": {}}),
    ):
        found = verdict_of("finished", "runs/shop", read(tmp_path, rightly(bad, **changes)))
        assert found.kind == kind
        assert found.words.startswith("Only 25% (11–47) have the same result. ")


def counting(tuned_rows: int, *, hits: bool) -> dict[str, Any]:
    """Fields in all of 60 answers of the base, and in so many of the tuned model's."""
    report = rightly({"field_accuracy": (1.0, 1.0, 1.0)}, rows=60)
    report["base"] |= side({"field_accuracy": (0.4, 0.3, 0.5)})
    report["differences"]["tuned_vs_base"]["field_accuracy"] |= {"rows": 60}
    report["counted"] = {
        "base": {"field_accuracy": {"rows": 60, "hits": False}},
        "tuned": {"field_accuracy": {"rows": tuned_rows, "hits": hits}},
    }
    return report


def test_rows_that_count_are_those_of_each_side(tmp_path: Path) -> None:
    """Four answers with a field beside sixty of the base keep no limit."""
    found = verdict_of("finished", "runs/shop", read(tmp_path, counting(4, hits=False)))
    assert found.kind == "look"
    assert found.words.startswith("100% (too few rows) of the fields are right. ")
    assert found.reasons == (
        "fields right: 100% (too few rows), where 80% is the least to ship with: too "
        "few rows to say (4): take more (about 16)",
    )
    row = read(tmp_path, counting(4, hits=False)).row("field_accuracy")
    assert row is not None and row.against["base"].instead == "too few rows"
    assert row.sides["base"].instead == ""
    enough = verdict_of("finished", "runs/shop", read(tmp_path, counting(60, hits=False)))
    assert enough.kind == "ship" and enough.words.startswith("100% (all rows alike) of the fields")
    # One field an answer: a share of those answers, whose interval is Wilson's and stands.
    report = counting(16, hits=True)
    report["tuned"]["field_accuracy_interval"] = list(share_interval(16, 16))
    ones = verdict_of("finished", "runs/shop", read(tmp_path, report))
    assert ones.kind == "ship" and ones.words.startswith("100% (81–100) of the fields")


def test_sections_are_no_share_of_rows_in_evaluations_of_before(tmp_path: Path) -> None:
    kinds = {"sections_present": {"label": "sections", "unit": "share", "better": "higher"}}
    sides = {name: side({"sections_present": (1.0, 1.0, 1.0)}) for name in ("base", "tuned")}
    found = read(tmp_path, evaluation(rows=4, scores=kinds, differences={}, **sides))
    assert found.scores[0].sides["tuned"].instead == "too few rows"


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"verdict": "worse"}, True),
        ({"verdict": "better"}, False),
        ({"verdict": "no difference shown"}, False),
        ({"verdict": "too few"}, False),
        ({}, True),
        ({"texts": 9}, False),
        ({"rows": 9}, False),
        ({"texts": 10}, True),
        ({"words": "+23%: 3 texts are too few to say"}, False),
    ],
)
def test_what_is_lost_is_what_the_evaluation_says(
    tmp_path: Path, changed: dict[str, Any], shown: bool
) -> None:
    """Files of before have no verdict: their interval tells, unless it is of too few."""
    found = read(tmp_path, evaluation(forgetting=lost(change=0.23, **changed))).forgotten[0]
    assert found.is_shown is shown


@pytest.mark.parametrize(
    ("name", "rate", "words"),
    [
        ("stop_rate", (142 / 150, *share_interval(142, 150)), "only 94.7% (90–97), where 95%"),
        ("stop_rate", (0.94999, 0.9, 0.97), "only 94.9% (90–97), where 95%"),
        ("format_rate", (0.97, 0.8996, 0.99), "97% (89.9–99), where 90% is the least"),
    ],
)
def test_a_share_below_its_limit_is_not_shown_as_the_limit(
    tmp_path: Path, name: str, rate: tuple[float, float, float], words: str
) -> None:
    found = judged(tmp_path, rows=150, tuned=side(TUNED | {name: rate}))
    assert len(found.reasons) == 1 and f": {words}" in found.reasons[0], found.reasons


def test_nearly_all_is_not_all_and_hardly_any_not_none(tmp_path: Path) -> None:
    tuned = side(TUNED | {"format_rate": (0.996, 0.991, 0.9985), "stop_rate": (1.0, 0.97, 1.0)})
    base = side(BASE | {"format_rate": (0.004, 0.0015, 0.009), "stop_rate": (0.0, 0.0, 0.03)})
    found = read(tmp_path, evaluation(base=base, tuned=tuned))
    shown = {}
    for name in ("format_rate", "stop_rate"):
        row = found.row(name)
        assert row is not None
        shown[name] = [row.sides[each].shown(row.score) for each in ("base", "tuned")]
    assert shown["format_rate"] == ["<1% (0–1)", ">99% (99–100)"]
    assert shown["stop_rate"] == ["0% (0–3)", "100% (97–100)"]
