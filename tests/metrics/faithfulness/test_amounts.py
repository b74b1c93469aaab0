"""Numbers with their units: what is equal, what is a claim, and what only looks like one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.metrics.faithfulness import faithfulness_scorer
from ftcli.metrics.faithfulness.number_words import readings_of
from ftcli.metrics.faithfulness.units import TABLE, Unit
from ftcli.metrics.scorer import Question
from ftcli.recipe import Faithfulness

JUDGE = faithfulness_scorer(Faithfulness(kinds=["number"]), Path())


def invented(facts: str, answer: str) -> list[str]:
    findings = JUDGE.score(answer, Question("", "", facts)).findings
    return [answer[each.start : each.end] for each in findings if each.start is not None]


@pytest.mark.parametrize(
    ("facts", "answer"),
    [
        ("Width: 30 cm", "0.3 m, 300 mm, 30cm, thirty centimetres, a 30-centimetre shelf"),
        ("Weight: 1,5 kg", "1.5 kg, 1500 g, 1,500 grams"),
        ("Price: 1.299,00 €", "€1299, 1,299 euros, EUR 1,299.00"),
        ("Price: $49.99", "under $50, about 50 dollars, USD 49.99, just $49.99"),
        ("Time: 90 min", "1.5 hours; an hour and a half is 90 minutes; 1 h 30 min"),
        ("Warranty: 12 months", "a one-year warranty"),
        ("Trial: 2 weeks", "14 days"),
        ("Diagonal: 12 in", '30.5 cm, 30 cm, 12", 12-inch'),
        ("Oven: 180 °C", "356 °F"),
        ("Length: 6 ft 2 in", "74 inches, 188 cm"),
        ("Size: 80 x 40 x 75 cm", "75 by 80 by 40 cm; 80 × 40 × 75 cm"),
        ("Range: 3-5 days", "up to 5 days, from 3 days, 3 to 5 days"),
        ("Pieces: 12", "a dozen mugs, twelve pieces, 12 items"),
        ("Seats: 3", "seats three; room for three people"),
        ("Colours: red, blue, green", "in three colours"),
        ("Bluetooth: 5.2", "Bluetooth 5.2"),
        ("Protection: IP65", "IP65-rated"),
        ("Dose: every six hours", "q6h"),
        ("Battery: 12000 mAh", "12 Ah"),
        ("Rate: 144 Hz", "144 times a second"),
        ("Power: 3000 W", "3 kW"),
        ("Share: 26 %", "26 percent"),
        ("Made on: 3 May 2018", "5/3/2018, the third of May, 2018"),
        ("Doctor: It was one thirty five over eighty, in nineteen ninety seven.", "135/80, 1997"),
        ("Patient: Half a pack a day, a couple of times.", "0.5 packs a day, twice a day"),
        ("Price: 5 dollars and 99 cents", "$5.99"),
    ],
)
def test_the_same_value_is_supported_however_it_is_written(facts: str, answer: str) -> None:
    assert invented(facts, answer) == []


@pytest.mark.parametrize(
    ("facts", "answer", "proof"),
    [
        ("Price: $49.99", "$50", "$50"),
        ("Price: $49.99", "under $100", "$100"),
        ("Price: $49.99", "over $50", "$50"),
        ("Price: $20", "€20", "€20"),
        ("Width: 5 cm", "5 kg", "5 kg"),
        ("Drawers: 3", "three shelves", "three shelves"),
        ("Range: 3-5 days", "4 days", "4 days"),
        ("Range: 3-5 days", "in 5 days", "5 days"),
        ("Pack: 4 x 250 g", "1 kg in total", "1 kg"),
        ("Calcium: 12,5 mg", "125 mg", "125 mg"),
        ("Size: 30 x 35 cm", "30 x 30 cm", "30 x 30 cm"),
        ("Protection: IP65", "IP67", "IP67"),
        ("Heel: 8 cm", "a 4 inch heel", "4 inch"),
        ("Cotton: yes", "100% cotton", "100%"),
        ("Made: by hand", "since 1987, in the 1950s", "1987"),
        ("Persons: 2", "half price", "half price"),
        ("Colours: red, blue", "two pockets", "two pockets"),
        ("Feature: quick", "twice as strong", "twice as strong"),
        ("Use: daily", "one front and two rear pockets", "one front"),
    ],
)
def test_another_value_or_unit_or_thing_is_invented(facts: str, answer: str, proof: str) -> None:
    assert proof in invented(facts, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "One of a kind, second to none, number one, 24/7, 365 days a year.",
        "Nine to five, cloud nine, a million reasons, two birds with one stone, ukulele 101.",
        "1. Soft\n2. Warm\n\nStep 3: wear it. Three reasons to love it:",
        "Three-quarter sleeves, a quarter-zip, two-way stretch, double-walled, 3D, MP3, omega-3.",
        "Dozens of uses, hundreds of fans, a few pockets, zero waste, one charge, one day.",
        "The first, the 2nd and the twenty-first century.",
        "A pair of shoes; a pair of these; another pair.",
        "Vitamin B12, COVID-19, HbA1c, L4-L5, CO2.",
    ],
)
def test_figures_of_speech_lists_and_names_are_no_amounts(answer: str) -> None:
    assert invented("Product: Bag", answer) == []


@given(st.floats(0.01, 10**6).map(lambda value: round(value, 2)))
def test_a_number_reads_the_same_in_english_and_german(value: float) -> None:
    english = f"{value:,.2f}"
    german = english.replace(",", " ").replace(".", ",").replace(" ", ".")
    for written in (english, german):
        readings, decimals = readings_of(written)
        assert any(math.isclose(value, reading) for reading in readings), written
        assert decimals == 2


def test_every_spelling_of_a_unit_is_there_once() -> None:
    spellings = [word for units in TABLE.values() for words in units for word in words.split()]
    assert len(spellings) == len(set(spellings))
    assert Unit("length", 10).worth(3) == 30


def test_a_number_that_the_answer_breaks_off_is_no_claim() -> None:
    facts = "Product: Lamp\nPrice: $499.99"
    assert invented(facts, "The price of this lamp is $49") == []
    assert invented(facts, "The price of this lamp is $49.") == ["$49"]
    camera = "A 12-megapixel camera, a 12-meg"
    assert invented("Product: Camera", camera) == ["12-megapixel"]


@pytest.mark.parametrize(
    ("answer", "proofs"),
    [
        ('Of the "Model 20" line, 14" wide.', ['14"']),
        ("With one year's notice.", ["one year's"]),
        ("Only 19.99Each.", ["19.99"]),
        ("A 1:1 service (2) of https://shop.example/bag-2023/x.", []),
        ("Our lamp:\n24\nis here.", []),
    ],
)
def test_numbers_beside_signs(answer: str, proofs: list[str]) -> None:
    assert invented("Product: Lamp", answer) == proofs


def test_the_counted_thing_may_stand_behind_a_comma() -> None:
    assert invented("Cables: 3", "It has three durable, braided cables.") == []
    assert invented("Cables: 3", "It has four durable, braided cables.") != []
