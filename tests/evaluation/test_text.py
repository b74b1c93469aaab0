"""Overlap of answers with references."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

from ftcli.evaluation.scorers.text import chrf, exact_match, rouge_l

ascii_texts = st.text(st.sampled_from("abcAB 12.,-'_\n"), max_size=30)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1),
        ("The cat, sat!", "the CAT sat.", 1),
        ("dogs bark", "the cat sat", 0),
        # 4 of 6 words in order: precision 4/6, recall 4/6.
        ("the cat was on a mat", "the cat sat on the mat", 4 / 6),
        # Precision 1, recall 2/6: F = 2 · 1 · ⅓ / (1 + ⅓).
        ("the cat", "the cat sat on the mat", 0.5),
        # Order counts: one of two words is in order.
        ("b a", "a b", 0.5),
        ("", "the cat sat", 0),
        ("", "", 0),
    ],
)
def test_rouge_l_of_known_pairs(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Große Größe", "große größe", 1),
        ("Кот сидел тут", "кот лежал тут", 2 / 3),
        # Scripts without spaces: each character is a word.
        ("我喜欢猫", "我喜欢狗", 0.75),
        ("猫が好き", "犬が好き", 0.75),
        ("ฉันรัก", "ฉันรัก", 1),
        # Vowels are marks: कि and का have the same consonant and are different words.
        ("कि", "का", 0),
        ("हिन्दी भाषा", "हिन्दी लिपि", 0.5),
        # Points belong to their word.
        ("كِتَاب جديد", "كِتَاب قديم", 0.5),
        ("שלום עולם", "שלום לך", 0.5),
        ("。", "。", 0),
    ],
)
def test_rouge_l_reads_every_script(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(score)


@given(ascii_texts, ascii_texts)
def test_in_latin_letters_it_is_the_published_score(answer: str, reference: str) -> None:
    published = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(answer, reference) == pytest.approx(published)


@given(st.text(), st.text())
def test_every_score_is_between_0_and_1(answer: str, reference: str) -> None:
    for measure in (rouge_l, chrf, exact_match):
        assert 0 <= measure(answer, reference) <= 1 + 1e-9


@given(st.text(min_size=1))
def test_an_answer_equal_to_its_reference_is_perfect(text: str) -> None:
    assert exact_match(text, text) == 1
    if any(character.isalnum() for character in text):
        assert rouge_l(text, text) == pytest.approx(1)
        assert chrf(text, text) == pytest.approx(1)


def test_chrf_is_the_published_score() -> None:
    answer, reference = "A red kettle of steel.", "Red steel kettle, 2 l."
    published = CHRF().sentence_score(answer, [reference]).score / 100
    assert chrf(answer, reference) == pytest.approx(published)


def test_exact_match_ignores_white_space_only_at_the_ends() -> None:
    answers = ["SELECT 1;", " SELECT 1;\n", "SELECT  1;", "select 1;", ""]
    assert [exact_match(answer, "SELECT 1;") for answer in answers] == [1, 1, 0, 0, 0]
