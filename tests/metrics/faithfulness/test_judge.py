"""What the judge counts and finds, and what it makes of the recipe's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftcli.errors import DataError
from ftcli.metrics.faithfulness import facts_of, faithfulness_files, faithfulness_scorer
from ftcli.metrics.faithfulness.text import in_order
from ftcli.metrics.format.time_limit import within
from ftcli.metrics.scorer import ExampleResult, Question
from ftcli.recipe import Faithfulness

FACTS = """Product: Torkel Field Bag
Category: travel
Material: waxed canvas
Colours: olive, navy
Pockets: 3
Leather: no
Price: $49.99"""
SHARE = (1.0, 1.0)
NONE = (0.0, 1.0)


def judged(answer: str, facts: str = FACTS, **keys: Any) -> ExampleResult:
    judge = faithfulness_scorer(Faithfulness(**keys), Path())
    return judge.score(answer, Question(facts, "", facts))


def found(answer: str, facts: str = FACTS, **keys: Any) -> list[tuple[str, str]]:
    """Kind and proof of each finding that has a place."""
    return [
        (each.kind, answer[each.start : each.end])
        for each in judged(answer, facts, **keys).findings
        if each.start is not None
    ]


def missing(answer: str, facts: str = FACTS, **keys: Any) -> list[str]:
    findings = judged(answer, facts, **keys).findings
    return [each.message for each in findings if each.kind == "not mentioned"]


def test_an_answer_that_stays_with_its_facts_is_faithful() -> None:
    answer = (
        "The Torkel Field Bag travels in olive or navy canvas, waxed, with three pockets "
        "and no leather. $49.99."
    )
    said = judged(answer, banned=["waterproof"])
    assert said.findings == ()
    assert said.counts["invents"] == said.counts["banned_claims"] == NONE
    assert said.counts["coverage"] == (8.0, 8.0)


def test_what_is_invented_is_proven_by_its_words() -> None:
    answer = "A black leather bag of 20 litres in size XL, with YKK zips."
    assert found(answer) == [
        ("colour not in the prompt", "black"),
        ("material not in the prompt", "leather"),
        ("number not in the prompt", "20 litres"),
        ("size not in the prompt", "XL"),
        ("brand not in the prompt", "YKK"),
    ]
    said = judged(answer)
    assert said.counts["invents"] == SHARE


def test_the_same_wording_is_one_claim() -> None:
    answer = "Black. " * 300 + "Navy. " * 300
    assert found(answer) == [("colour not in the prompt", "Black")]


def test_facts_that_are_not_mentioned_are_named_with_their_key() -> None:
    assert missing("A bag in olive with three pockets.") == [
        "Product: Torkel Field Bag",
        "Category: travel",
        "Material: waxed canvas",
        "Colours: navy",
        "Leather: no",
        "Price: $49.99",
    ]


def test_ignored_keys_need_no_mention_and_support_claims_all_the_same() -> None:
    keys = {"ignore": ["category", "Price", "Leather"]}
    assert missing("The Torkel bag in waxed canvas: olive, navy, three pockets.", **keys) == []
    assert found("Yours for $49.99.", **keys) == []


def test_free_text_has_no_coverage() -> None:
    talk = "Doctor: Ten days?\nPatient: Yes.\nDoctor: Take two a day."
    assert "coverage" not in judged("Ten days.", talk).counts
    assert "coverage" not in judged("A bag.", "A bag of canvas. Two pockets.").counts


def test_kinds_limit_what_is_looked_at() -> None:
    answer = "A black leather bag."
    assert found(answer, kinds=["colour"]) == [("colour not in the prompt", "black")]
    assert judged(answer, kinds=["size"]).counts["invents"] == NONE


def test_allowed_words_are_never_invented() -> None:
    answer = "At HomeBliss we love black bags."
    assert found(answer) == [
        ("brand not in the prompt", "HomeBliss"),
        ("colour not in the prompt", "black"),
    ]
    assert found(answer, allowed=["HomeBliss", "black"]) == []


def test_more_words_of_a_shop() -> None:
    answer = "A snorble bag in glimmer by zorp."
    assert found(answer) == []
    assert found(answer, materials=["snorble"], colours=["glimmer"], brands=["Zorp"]) == [
        ("material not in the prompt", "snorble"),
        ("colour not in the prompt", "glimmer"),
    ]
    assert found("A bag by Zorp.", brands=["Zorp"]) == [("brand not in the prompt", "Zorp")]
    assert found("Snorble.", "Material: snorble", materials=["snorble"]) == []


def test_banned_claims_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "never.txt").write_text("# of the law\nwaterproof\n\nbest in the world\n")
    wanted = Faithfulness(banned="never.txt")
    assert faithfulness_files(wanted, tmp_path) == [tmp_path / "never.txt"]
    judge = faithfulness_scorer(wanted, tmp_path)
    assert list(judge.kinds) == ["invents", "coverage", "banned_claims"]
    said = judge.score("Waterproof, the best-in-the-world bag.", Question("", "", FACTS))
    assert [each.kind for each in said.findings if each.start is not None] == ["banned claim"] * 2
    assert said.counts["banned_claims"] == SHARE


def test_without_a_list_nothing_is_banned() -> None:
    assert list(faithfulness_scorer(Faithfulness(), Path()).kinds) == [
        "invents",
        "coverage",
    ]
    assert "banned_claims" not in judged("The best in the world.").counts


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00waterproof"])
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "never.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"eval\.faithfulness\.banned") as raised:
        faithfulness_scorer(Faithfulness(banned="never.txt"), tmp_path)
    assert raised.value.code == "banned_claims"
    assert "never.txt" in str(raised.value.file)


@pytest.mark.parametrize(
    ("pattern", "facts"),
    [
        (None, "Write.\n\nProduct: Bag"),
        (r"Product:.*", "Product: Bag"),
        (r"\n\n(?P<facts>.*)", "Product: Bag"),
        (r"nowhere", "Write.\n\nProduct: Bag"),
    ],
)
def test_the_facts_of_a_prompt(pattern: str | None, facts: str) -> None:
    assert facts_of(Faithfulness(facts=pattern), "Write.\n\nProduct: Bag") == facts
    assert facts_of(None, "Write.\n\nProduct: Bag") == "Write.\n\nProduct: Bag"


PIECES = st.sampled_from(["\n", "\n\n"]) | st.sampled_from(
    in_order(
        "red navy oak gold ½ 1 2.5 1,299 0.75 9 /3 - – × x to and or of in by at per half dozen "
        "pair twice three hundred thousand point May 5th $ € % ° ² ' \" S XL size EU cm m² kg in "
        "ft k A not no without free from made : | * # . , ; ( ) Bosch WaveDry Introducing the "
        "Product İ ß ﬁ ́ ٣ 😀 www.a.com colour Material yes like glass one a IP67 twenty first as"
    )
)
JUMBLE = st.lists(PIECES, max_size=40).map(" ".join) | st.lists(PIECES, max_size=40).map("".join)


@settings(max_examples=300, deadline=None)
@given(JUMBLE | st.text(max_size=120), JUMBLE | st.text(max_size=120))
@example("", "")
@example("1.", "Price: $")
@example("half", "a: b\na: c")
def test_no_text_makes_it_raise_and_every_proof_is_a_piece(answer: str, facts: str) -> None:
    said = judged(answer, facts, banned=["best", "no. 1"], allowed=["Bosch"])
    for each in said.findings:
        if each.start is not None and each.end is not None:
            assert 0 <= each.start < each.end <= len(answer)
    for name, (top, bottom) in said.counts.items():
        assert 0 <= top <= bottom, name
    assert judged(answer, facts, banned=["best", "no. 1"], allowed=["Bosch"]) == said


AMOUNTS = st.tuples(st.integers(2, 9999), st.sampled_from(["cm", "kg", "pockets", "%", "hours"]))


@settings(max_examples=100, deadline=None)
@given(st.lists(AMOUNTS, max_size=8))
def test_the_amounts_of_the_facts_word_for_word_are_never_invented(
    amounts: list[tuple[int, str]],
) -> None:
    text = ", ".join(f"{value} {unit}" for value, unit in amounts)
    assert found(text, f"Details: {text}") == []


def test_an_answer_as_long_as_a_book() -> None:
    page = (
        "The Torkel Field Bag in olive canvas, 3 pockets, 40 x 30 cm, by Marco Bellini, $49.99.\n"
    )
    said = found(page * 2400)
    assert said == [
        ("number not in the prompt", "40 x 30 cm"),
        ("brand not in the prompt", "Marco Bellini"),
    ]


def test_an_expression_for_the_facts_that_finds_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcli.metrics.faithfulness.within", lambda: within(0.2))
    wanted = Faithfulness(facts="(a|a)*(a|a)*b")
    with pytest.raises(DataError, match=r"eval\.faithfulness\.facts.*took more than") as raised:
        facts_of(wanted, "a" * 60)
    assert raised.value.code == "facts_expression"
