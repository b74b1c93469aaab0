"""Facts mentioned, banned and allowed phrases, and where the facts are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftcli.config.evaluation import Grounding
from ftcli.config.loader import load_recipe
from ftcli.data.example import Message, Role
from ftcli.errors import DataError, RecipeError
from ftcli.evaluation.scorers.facts import GroundingScorer, facts_of, facts_text, question_of
from ftcli.evaluation.scorers.scorer import ExampleResult, Question, time_limit

FACTS = "Product: Torkel Bag\nColours: olive, sand\nWaterproof: yes\nLid: no\nPockets: 3"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scored(answer: str, facts: str = FACTS, **wanted: Any) -> ExampleResult:
    scorer = GroundingScorer(Grounding(**wanted), ())
    return scorer.score(answer, Question(facts, "", facts))


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        ("The Torkel bag in olive and sand, waterproof, 3 pockets.", []),
        ("A Torkel bag in olive.", ["Colours: sand", "Waterproof: yes", "Pockets: 3"]),
        ("", [f"{f.key}: {f.value}" for f in facts_of(FACTS)]),
    ],
)
def test_facts_that_an_answer_mentions(answer: str, missing: list[str]) -> None:
    result = scored(answer)
    assert [f.message for f in result.findings if f.kind == "not mentioned"] == missing
    assert result.counts["coverage"] == (5.0 - len(missing), 5.0)


def test_optional_facts_need_no_mention() -> None:
    assert scored("", optional=["colours", "Pockets"]).counts["coverage"] == (0.0, 2.0)


@pytest.mark.parametrize(
    "facts",
    [
        "Doctor: How are you?\nPatient: Well.\nDoctor: Good.",
        "A bag in olive, with three pockets.",
        "Note: this is a long sentence that goes on and on about a bag with three pockets inside",
    ],
)
def test_prose_and_conversations_have_no_facts(facts: str) -> None:
    assert "coverage" not in scored("anything", facts).counts


def test_banned_phrases_in_any_form(tmp_path: Path) -> None:
    result = scored(
        "It cures headaches. GUARANTEED-FOR-LIFE!", banned=["cure", "guaranteed for life"]
    )
    assert result.counts["banned_phrases"] == (1.0, 1.0)
    assert len([f for f in result.findings if f.kind == "banned phrase"]) == 2
    (tmp_path / "never.txt").write_text("# a comment\ncure\n\n")
    scorer = GroundingScorer(Grounding(banned="never.txt"), ())
    assert scorer.score("It cured him", Question("", "", "")).counts["banned_phrases"][0] == 1
    assert "banned_phrases" not in scored("It cures").counts
    with pytest.raises(DataError, match="one phrase per line"):
        GroundingScorer(Grounding(banned="gone.txt"), ())


def test_allowed_phrases_are_not_marked() -> None:
    answer = "Torkel Bag by Home Bliss 24"
    assert scored(answer).counts["not_in_prompt"] == (1.0, 1.0)
    assert scored(answer, allowed=["home bliss 24"]).counts["not_in_prompt"] == (0.0, 1.0)


def turns(*pairs: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(*pair) for pair in pairs)


def test_facts_stand_in_all_user_turns() -> None:
    talk = turns(
        ("system", "Nine pockets."), ("user", FACTS), ("assistant", "8"), ("user", "Shorter."),
        ("assistant", "A bag."),
    )  # fmt: skip
    question = question_of(talk, None)
    assert (question.prompt, question.reference) == ("Shorter.", "A bag.")
    assert question.facts == f"{FACTS}\n\nShorter."
    assert question_of((), None).facts == ""
    wanted = Grounding(facts=r"(?s)(?P<facts>Product:.*?)\n\n")
    assert question_of(talk, wanted).facts == FACTS
    assert facts_text(Grounding(facts="(gone)"), FACTS) == FACTS


def test_an_expression_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcli.evaluation.scorers.facts.time_limit", lambda: time_limit(0.2))
    with pytest.raises(DataError, match="write it without nested repeats"):
        facts_text(Grounding(facts=r"(a+)+$"), "a" * 40 + "b")


RECIPE = "name: shop\nmodel: {id: here}\nmethod: {mode: full}\ndata: {train: rows.jsonl}\neval:\n"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("facts: '('", "eval.grounding.facts: not a regular expression"),
        ("language: klingon", "eval.grounding.language"),
        ("banned: never", "eval.grounding.banned: 'never' is not a .txt file"),
        ("banned: ['']", "eval.grounding.banned: contains an empty word"),
        ("optinal: [a]", "eval.grounding.optinal: unknown key; did you mean optional?"),
    ],
)
def test_errors_name_their_line(tmp_path: Path, keys: str, message: str) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(f"{RECIPE}  grounding:\n    {keys}\n")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    (problem, *_) = raised.value.problems
    assert problem.line == 7
    assert message in f"{problem.key}: {problem.message}"


def test_the_list_of_banned_phrases_holds_wherever_the_recipe_is_put(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    (tmp_path / "never.txt").write_text("cure\n")
    path.write_text(f"{RECIPE}  grounding: {{banned: never.txt}}\n")
    wanted = load_recipe(path).recipe.eval.grounding
    assert wanted is not None and wanted.banned == str(tmp_path / "never.txt")
