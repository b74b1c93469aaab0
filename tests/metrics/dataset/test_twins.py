"""Near duplicates: what is found equals what comparing every pair finds."""

from __future__ import annotations

import random

import pytest

from ftcli.data.example import Origin
from ftcli.metrics.dataset.row import DataRow
from ftcli.metrics.dataset.shingles import Shingler, common_shingles, jaccard
from ftcli.metrics.dataset.twins import SIMILAR, NearDuplicates, Twins
from tests.metrics.dataset.rows import row

WORDS = [f"word{number}" for number in range(3000)]
INSTRUCTION = "Write a product description for an online shop from these facts and nothing else: "


def text(draw: random.Random, words: int = 60) -> list[str]:
    return draw.choices(WORDS, k=words)


def changed(words: list[str], places: int, draw: random.Random) -> list[str]:
    """The same words, but for some."""
    copy = list(words)
    for place in draw.sample(range(len(copy)), places):
        copy[place] = draw.choice(WORDS)
    return copy


def found(rows: list[DataRow]) -> NearDuplicates:
    twins = Twins(each.prompt for each in rows)
    for each in sorted(rows, key=lambda each: each.held_out):
        twins.add(each)
    return twins.found()


def test_as_many_rows_have_a_twin_as_comparing_every_pair_finds() -> None:
    draw = random.Random(1)
    rows: list[DataRow] = []
    for _ in range(150):
        original = text(draw)
        copies = draw.choice([0, 0, 1, 3])
        for words in [original, *(changed(original, 1, draw) for _ in range(copies))]:
            prompt = INSTRUCTION + " ".join(words[:30])
            rows.append(row(prompt, " ".join(words[30:]), len(rows) + 1))
    shingler = Shingler()
    common = common_shingles([each.prompt for each in rows], shingler)
    sets = [shingler.of(each, common) for each in rows]
    alike = {
        place
        for place, one in enumerate(sets)
        for other, another in enumerate(sets)
        if place != other and jaccard(one, another) >= SIMILAR
    }
    seen = found(rows)
    assert seen.rows == len(alike) > 50
    assert seen.rows_looked_at == len(rows)
    assert seen.share == len(alike) / len(rows)


def test_the_similarity_is_that_of_sets_of_three_words() -> None:
    shingler = Shingler()
    one, other = (shingler.shingles(words) for words in ("a b c d e", "a b c d f"))
    assert (len(one), len(other)) == (3, 3)
    assert jaccard(one, other) == 2 / 4
    assert len(shingler.shingles("One two")) == 1
    assert (shingler.shingles("One  TWO three!") == shingler.shingles("one two three")).all()
    # Scripts without spaces: a character is a word.
    assert len(shingler.shingles("红色的茶壶")) == 3
    assert len(shingler.shingles(" … ")) == 0


def test_an_instruction_that_all_share_makes_no_twins() -> None:
    draw = random.Random(2)
    rows = [row(INSTRUCTION * 3 + " ".join(text(draw, 8)), "a b c", n) for n in range(40)]
    assert found(rows).rows == 0


def test_rows_with_another_short_answer_disagree() -> None:
    draw = random.Random(3)
    prompt = " ".join(text(draw))
    rows = [row(prompt, "billing", 1), row(prompt, "Billing ", 2), row(prompt, "shipping", 3)]
    rows += [row(" ".join(text(draw)), "billing", n) for n in range(4, 20)]
    seen = found(rows)
    assert (seen.rows, seen.disagreeing) == (3, 1)
    assert [(p.first.line, p.second.line) for p in seen.shown] == [(1, 2), (1, 3)]


def test_held_out_rows_that_nearly_equal_a_training_row_are_counted_apart() -> None:
    draw = random.Random(4)
    originals = [text(draw) for _ in range(30)]
    rows = [row(" ".join(w[:30]), " ".join(w[30:]), n) for n, w in enumerate(originals, 1)]
    for number, words in enumerate(originals[:12], 101):
        copy = changed(words, 1, draw)
        held_out = row(" ".join(copy[:30]), " ".join(copy[30:]), number, held_out=True)
        rows.append(held_out)
    for number in range(200, 208):
        rows.append(row(" ".join(text(draw)), "new", number, held_out=True))
    # Held-out rows that equal each other and no training row flatter nothing.
    rows += [row(" ".join(WORDS[:60]), "twice", number, held_out=True) for number in (300, 301)]
    seen = found(rows)
    assert (seen.rows, seen.held_out_rows, seen.held_out_looked_at) == (0, 12, 22)
    first = seen.held_out_shown[0]
    assert (first.first, first.second) == (Origin("rows.jsonl", 1), Origin("rows.jsonl", 101))
    assert SIMILAR <= first.similarity < 1


def test_the_same_rows_give_the_same_twins_each_time() -> None:
    draw = random.Random(5)
    originals = [text(draw, 40) for _ in range(60)]
    rows = [row(" ".join(w), "x", n) for n, w in enumerate([*originals, *originals[:20]])]
    assert found(rows) == found(rows)
    assert found(rows).rows == 40


@pytest.mark.parametrize("answer", ["", "…"])
def test_rows_without_a_word_are_like_no_other(answer: str) -> None:
    assert found([row("?", answer, 1), row("!", answer, 2)]).rows_looked_at == 0
