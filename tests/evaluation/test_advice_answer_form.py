"""Which form answers share; what is suggested finds it again in the same answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from ftcli.config.recipe import Evaluation
from ftcli.evaluation.advice.answer_form import AnswerForm, answer_form
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import Question

NAMES = ("kettle", "lamp", "chair", "drum", "scarf", "spade", "kite", "mug", "desk", "rug")


DRAW = random.Random(0)


def some(least: int, most: int | None = None) -> str:
    return " ".join(DRAW.choices(NAMES, k=DRAW.randint(least, most or least)))


def listing(number: int) -> str:
    bullets = "\n".join(f"- {some(2)}" for _ in range(3))
    return f"# {some(2)} [{number}]\n{some(5)}.\n{bullets}\n\nSpecs: {some(1)} | {number}"


def summary(number: int) -> str:
    """Two sections, with other lines between them each time."""
    body = "\n".join(some(4) for _ in range(DRAW.randint(1, 4)))
    more = "\n\n- x" * DRAW.randint(0, 2) + f"\n{some(1)}:" * DRAW.randint(0, 1)
    return f"Issue:\n{body}{more}\nNext step: {some(3)}\n{some(2)}" + "\na" * (number % 4)


ONE: dict[str, Callable[[int], str]] = {
    "labels": lambda number: ("billing (paid)", "shipping", "other")[number % 3],
    "json": lambda number: json.dumps({"name": some(2), "price.eur": number, "tags": [some(1)]}),
    "array": lambda number: json.dumps([some(1)] * (number % 4)),
    "any object": lambda number: json.dumps({f"key {number}": some(2)}),
    "sql": lambda number: f"SELECT {some(1)} FROM data WHERE {some(1)} = '{number} (a)'",
    "lines": listing,
    "bullets": lambda _: "\n".join(f"- {some(2)}" for _ in range(DRAW.randint(1, 6))),
    "sections": summary,
    "opening": lambda _: f"Thank you for writing to us, {some(1, 40)}",
    "length": lambda number: f"{some(1)}{number} {some(20, 29)}",
    "prose": lambda number: f"{some(1)}{number} {some(1, 90)}",
}


def answers_of(kind: str) -> list[str]:
    """A hundred answers of one kind."""
    DRAW.seed(0)
    return [ONE[kind](number) for number in range(100)]


EXPECTED = {
    "labels": ("labels", "one of 3 labels"),
    "json": ("json", "a JSON object with the keys name, price.eur, tags"),
    "array": ("json", "a JSON array"),
    "any object": ("json", "a JSON object (100 different sets of keys)"),
    "sql": ("sql", "SQL"),
    "lines": ("lines", "lines “# …”, text, “- …”, “Specs: …”"),
    "bullets": ("lines", "lines “- …”"),
    "sections": ("sections", "the sections Issue:, Next step:"),
    "opening": ("opening", "the opening “Thank you for writing to us,”"),
    "length": ("length", "words long"),
    "prose": ("free text", "free text"),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_form_is_recognised(kind: str) -> None:
    name, detail = EXPECTED[kind]
    found = answer_form(answers_of(kind))
    assert found.kind == name
    assert detail in found.detail
    assert found.share == (0 if name == "free text" else pytest.approx(1, abs=0.1))
    assert found.fixed == (name in ("labels", "json", "sql", "lines", "sections"))


def rate(form: AnswerForm, answers: list[str]) -> float:
    """The share that `ftcli eval` would report for the suggested `eval.format`."""
    wanted = Evaluation.model_validate({"format": form.eval_format}).format
    assert wanted is not None
    scorer = format_scorer(wanted)
    counts = [scorer.score(a, Question("", a, "")).counts["format_rate"] for a in answers]
    return sum(top for top, _ in counts) / len(counts)


@pytest.mark.parametrize("kind", [kind for kind in EXPECTED if kind != "prose"])
def test_what_is_suggested_measures_the_share(kind: str) -> None:
    """Also where some of the answers have another form."""
    answers = answers_of(kind)
    assert rate(answer_form(answers), answers) == answer_form(answers).share
    others = 4 if kind == "length" else 8
    mixed = [*answers[others:], *(f"No idea {'at all ' * n}" for n in range(others))]
    found = answer_form(mixed)
    assert found.kind == EXPECTED[kind][0]
    assert rate(found, mixed) == found.share == pytest.approx(0.92, abs=0.05)


def test_half_of_the_answers_have_a_form_that_is_not_fixed() -> None:
    mixed = [*answers_of("json")[:60], *answers_of("prose")[:40]]
    found = answer_form(mixed)
    assert (found.kind, found.share, found.fixed) == ("json", 0.6, False)
    assert answer_form([*answers_of("json")[:40], *answers_of("prose")[:60]]).kind == "free text"


def test_prose_that_begins_like_sql_is_not_sql() -> None:
    prose = [f"Select the {name} that suits your room, or update it." for name in NAMES] * 10
    assert answer_form([f"{text} {n}" for n, text in enumerate(prose)]).kind != "sql"


@pytest.mark.parametrize("answers", [[], ["a"], ["["] * 3, ["{" * 5000] * 3, ["\n"] * 2])
def test_few_and_strange_answers_have_a_form_or_none(answers: list[str]) -> None:
    assert answer_form(answers).share in (0.0, 1.0)
