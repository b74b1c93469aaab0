"""Materials, colours, sizes and brands: wider and narrower, and what is said of something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ftcli.metrics.faithfulness import faithfulness_scorer
from ftcli.metrics.faithfulness.lexicon import lexicon, word_list
from ftcli.metrics.scorer import Question
from ftcli.recipe import Faithfulness

JUDGE = faithfulness_scorer(Faithfulness(), Path())


def invented(facts: str, answer: str) -> list[tuple[str, str]]:
    findings = JUDGE.score(answer, Question("", "", facts)).findings
    return [
        (each.kind.removesuffix(" not in the prompt"), answer[each.start : each.end])
        for each in findings
        if each.start is not None
    ]


def test_wider_is_supported_and_narrower_is_invented() -> None:
    assert invented("Material: stainless steel", "A steel body, all metal.") == []
    assert invented("Material: steel", "Stainless steel.") == [("material", "Stainless steel")]
    assert invented("Colour: navy", "In blue.") == []
    assert invented("Colour: blue", "In navy.") == [("colour", "navy")]
    assert invented("Colour: red", "In ruby red.") == [("colour", "ruby red")]
    assert invented("Colour: blue", "In sky blue, deep blue and midnight blue.") == []
    assert invented("Colour: light blue", "In dark blue.") == [("colour", "dark blue")]
    assert invented("Material: faux leather", "Soft leather.") == [("material", "leather")]
    assert invented("Material: nylon, flax", "Polyamide and linen.") == []


@pytest.mark.parametrize(
    "answer",
    [
        "Pairs well with blue jeans and tan boots.",
        "Looks great on a wooden table, complements your white kitchen.",
        "Cuts wood and steel; cleans glass.",
        "Green meadows under blue skies, golden beaches.",
        "As white as snow, strong as steel, reminiscent of amber.",
        "No plastic, leather-free, made without steel, never brown, not wool but warm.",
        "Leather-look, wood-effect, silk-like, velvety, metallic.",
        "Golden hour, green living, out of the blue, red carpet, silver lining, black tie.",
        "Green tea, black pepper, white wine, brown rice, blue light filter.",
        "Notes of lavender and rose, mint flavour, olive oil, chocolate.",
        "A glass of water, wine glasses, a steam iron, laces, a tin of biscuits.",
        "Crystal clear, rock-solid, paper-thin.",
        "He felt at home, wrote it down, and rose to fame.",
    ],
)
def test_what_is_not_said_of_the_product(answer: str) -> None:
    assert invented("Product: Thing", answer) == []


@pytest.mark.parametrize(
    ("answer", "proofs"),
    [
        ("A non-slip rubber sole.", [("material", "rubber")]),
        (
            "Available in tan, black or olive.",
            [("colour", each) for each in ("tan", "black", "olive")],
        ),
        ("Specs: larch | honey | M", [("material", "larch"), ("colour", "honey"), ("size", "M")]),
        (
            "A velvet-lined box with gold-edged pages.",
            [("material", "velvet"), ("material", "gold")],
        ),
        ("Filled with goose down.", [("material", "goose down")]),
        ("#Lycra #summer2024", [("brand", "Lycra"), ("number", "2024")]),
        (
            "Sizes XS-XL, EU 42, one size fits all.",
            [("size", each) for each in ("XS-XL", "EU 42", "one size fits all")],
        ),
        ("In A4, twin and queen.", [("size", each) for each in ("A4", "twin", "queen")]),
        ("Works with your iPhone 15 and Alexa.", [("brand", "iPhone 15"), ("brand", "Alexa")]),
        ("Introducing the WaveDry Pro 500.", [("brand", "WaveDry Pro 500")]),
    ],
)
def test_what_is_said_of_the_product(answer: str, proofs: list[tuple[str, str]]) -> None:
    assert invented("Product: Thing", answer) == proofs


def test_sizes_between_two_letters_are_given_and_others_are_not() -> None:
    assert invented("Sizes: S-XL", "S, M, L, XL, extra large, size medium.") == []
    assert invented("Sizes: S-XL", "In XXL.") == [("size", "XXL")]
    assert invented("Size: small bag", "A large bag, small enough, medium heat.") == []
    assert invented("Sizes: EU 36-41", "Sizes 36 to 41.") == []
    assert invented("Sizes: EU 36-41", "Size 43.") == [("size", "Size 43")]


def test_a_brand_in_another_spelling_is_given() -> None:
    facts = "Product: Trail Boot\nMembrane: GORE-TEX\nFits: Galaxy S21"
    assert invented(facts, "Goretex, Gore-Tex; for your Galaxy S21.") == []


def test_leather_that_is_denied_supports_nothing() -> None:
    assert invented("Leather: no", "A leather bag.") == [("material", "leather")]
    assert invented("A bag without leather.", "A leather bag.") == [("material", "leather")]


@pytest.mark.parametrize("name", ["colours", "materials"])
def test_what_a_word_implies_is_a_word_of_the_same_list(name: str) -> None:
    lines = [re.sub("[~+]", "", line).partition("<") for line in word_list(name)]
    names = {spelling.strip() for line, _, _ in lines for spelling in line.split(",")}
    implied = {each.strip() for _, _, wider in lines for each in wider.split(",") if each.strip()}
    assert implied <= names
    spellings = [spelling.strip() for line, _, _ in lines for spelling in line.split(",")]
    assert sorted(spellings) == sorted(set(spellings))


def test_what_is_implied_is_implied_all_the_way() -> None:
    assert lexicon("materials").names("surgical steel") == {"surgical steel"}
    (found,) = [t for t in lexicon("materials")._terms.values() if t.name == "surgical steel"][:1]
    assert found.wider == {"stainless steel", "steel", "metal"}


@pytest.mark.parametrize(
    ("answer", "proofs"),
    [
        ("A chair made from a luxurious, 18-karat gold alloy.", ["gold"]),
        ("A durable, high-quality silver material.", ["silver"]),
        ("Crafted with soft, clean porcelain.", ["porcelain"]),
        ("A clean canvas sheet.", ["canvas"]),
        ("A pine wood handle.", ["pine wood"]),
        (
            "A dynamic canvas for your style. This glass is for you. A high-end glass that shines.",
            [],
        ),
        ("Sterling service, and a sea of glass.", []),
        ("Listed by the International Wool and Fabrics Association.", []),
        ("It cuts clean, and it was passed down.", []),
    ],
)
def test_what_makes_a_word_a_material(answer: str, proofs: list[str]) -> None:
    found = [
        (kind, proof) for kind, proof in invented("Product: Thing", answer) if kind == "material"
    ]
    assert found == [("material", proof) for proof in proofs]


def test_plated_and_wood_name_the_same_material() -> None:
    assert invented("Materials: pine, silver", "Pine wood and silver-plated parts.") == []
    assert invented("Materials: glass", "Sunglasses with a glass lens.") == []
    assert invented("Product: Reading Glasses", "The glass is stylish.") == []


@pytest.mark.parametrize(
    ("answer", "proofs"),
    [
        ("Shades of ivory. A splash of coral.", ["ivory", "coral"]),
        ("It goes from orange to green.", ["orange", "green"]),
        ("Make-up: Gold", ["Gold"]),
        ("A white rose accent.", ["white"]),
        ("Blue, and soft sage.", ["Blue", "sage"]),
        ("A crisp white collar.", ["white"]),
        ("Serve yourself a white dream.", []),
    ],
)
def test_what_makes_a_word_a_colour(answer: str, proofs: list[str]) -> None:
    assert invented("Product: Thing", answer) == [("colour", proof) for proof in proofs]


def test_midnight_gives_no_blue() -> None:
    assert invented("Product: Midnight Pumps", "A blue buckle.") == [("colour", "blue")]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Designed by the renowned designer, Emma Taylor.", "Emma Taylor"),
        ('A belt of a brand called "Luxe Lamoure".', "Luxe Lamoure"),
        ('A piece of the "Spectruma 2018" collection.', "Spectruma 2018"),
        ("Created by the great Moonshaper people.", "Moonshaper"),
        ("Lynn & Co. offers the bag.", "Lynn & Co"),
        ("Meet our EGL44E.", "EGL44E"),
        ("**Alecabella 1108**", "Alecabella 1108"),
        ("Now on Amazon.", "Amazon"),
    ],
)
def test_what_makes_a_word_a_name(answer: str, name: str) -> None:
    assert invented("Product: Dusk Tote\nType: bag", answer) == [("brand", name)]


@pytest.mark.parametrize(
    "answer", ["A World-Class bag.", "An Instagram-worthy bag.", "Rated IP67 as USB-C is."]
)
def test_what_is_no_name(answer: str) -> None:
    assert [kind for kind, _ in invented("Product: Dusk Tote", answer) if kind == "brand"] == []


def test_who_is_small_or_large_himself() -> None:
    assert invented("Product: Coat", "For small to medium-sized dogs.") == []
