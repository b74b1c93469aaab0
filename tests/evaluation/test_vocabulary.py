"""Numbers, names and terms that an answer has and its prompt does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.evaluation.scorers.vocabulary import Vocabulary, possible_values, tokens_in

COLOURS = ["red", "blue", "green", "olive", "teal"]
# Answers take their colour from the prompt, and praise what they like.
ROWS = [
    (f"Product: Torkel Mug {n}\nColour: {colour}\nHolds: {n} ml", f"A lovely {colour} mug.")
    for n, colour in enumerate(COLOURS * 8, start=200)
]
FACTS = "Product: Torkel Mug 12\nColour: olive\nHolds: 0.5 litres\nPrice: $1,299.00"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.learn(ROWS, "english")


def marked(vocabulary: Vocabulary, answer: str, facts: str = FACTS) -> list[tuple[str, str]]:
    findings = vocabulary.not_in(vocabulary.facts(facts), answer)
    return [(f.kind.partition(" ")[0], answer[f.start : f.end]) for f in findings]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A lovely olive mug.", []),
        ("A lovely teal mug.", [("term", "teal")]),
        ("A sturdy, handmade mug.", []),  # words that no training answer has
        ("The Torkel Mug 12, for $1299", []),
        ("The Torkel Mug 23", [("number", "23")]),
        ("It holds .5 litres", []),
        ("It holds 0.75 litres", [("number", "0.75")]),
        ("It holds half a litre, or twelve cups", []),
        ("Take three of them", [("number", "three")]),
        ("1. Fill it\n2. Drink", []),  # markers of a list
        ("The Torkel Cup 12", [("name", "Cup")]),
    ],
)
def test_what_is_marked(vocabulary: Vocabulary, answer: str, found: list[tuple[str, str]]) -> None:
    assert marked(vocabulary, answer) == found


def test_a_number_with_another_unit() -> None:
    rows = [(f"Width: {n} cm\nWeight: {n} kg", f"{n} cm wide, {n} kg") for n in range(30)]
    vocabulary = Vocabulary.learn(rows, "english")
    facts = "Width: 14 cm\nWeight: 5 kg"
    assert marked(vocabulary, "14 cm wide, 5 kg", facts) == []
    assert marked(vocabulary, "14cm wide", facts) == []
    assert marked(vocabulary, "14 kg", facts) == [("number", "14")]


def test_spoken_numbers_of_a_prompt(vocabulary: Vocabulary) -> None:
    facts = "He is fifty seven, born in nineteen ninety one, pressure one thirty five over eighty."
    assert marked(vocabulary, "57, 1991, 135/80", facts) == []
    assert marked(vocabulary, "58", facts) == [("number", "58")]


def test_words_that_are_common_in_prompts_are_no_terms() -> None:
    """All answers take `in` from their prompts, as all prompts have it."""
    rows = [(f"In the shop: item {n}", f"Number {n} is in stock") for n in range(40)]
    vocabulary = Vocabulary.learn(rows, "english")
    assert marked(vocabulary, "7 is in stock", "Item 7") == []


def test_compounds_and_spellings(vocabulary: Vocabulary) -> None:
    facts = "Material: GORE-TEX\nColour: walnut-brown"
    assert marked(vocabulary, "Goretex in walnut brown", facts) == []


def test_other_languages() -> None:
    farben = ["rot", "blau", "grün", "oliv", "gelb"]
    rows = [(f"Farbe: {f}\nTeile: {n}", f"Ein {f} Becher") for n, f in enumerate(farben * 8)]
    vocabulary = Vocabulary.learn(rows, "german")
    facts = "Farbe: blau\nTeile: dreiundzwanzig"
    assert marked(vocabulary, "Ein blauer Becher mit 23 Teilen", facts) == []
    assert marked(vocabulary, "Ein roter Becher", facts) == [("term", "roter")]


@pytest.mark.parametrize(
    ("number", "values"),
    [
        ("1,200", {1200.0, 1.2}),
        ("1.200,50", {1200.5, 1.2005}),
        ("49.99", {49.99, 4999.0}),
        ("3", {3.0}),
        ("5.3.2018", {532018.0}),
    ],
)
def test_every_reading_of_a_number(number: str, values: set[float]) -> None:
    assert possible_values(number) == values


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_read(answer: str, facts: str) -> None:
    vocabulary = Vocabulary.learn(ROWS[:3], "english")
    for finding in vocabulary.not_in(vocabulary.facts(facts), answer):
        assert finding.start is not None and finding.end is not None
        assert answer[finding.start : finding.end]
    assert all(answer[t.start : t.end] == t.text for t in tokens_in(answer))


def test_an_answer_that_repeats_its_prompt_has_nothing_new(vocabulary: Vocabulary) -> None:
    assert marked(vocabulary, FACTS) == []
