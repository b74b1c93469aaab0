"""What all prompts begin with."""

from __future__ import annotations

import pytest

from ftcli.metrics.dataset.instruction import shared_beginning, shared_instruction

FACTS = "Write the listing from these facts.\n\nProduct: "


@pytest.mark.parametrize(
    ("texts", "beginning"),
    [
        # Whole lines: the first field's name belongs to the row.
        ([f"{FACTS}{name}" for name in ("kettle", "lamp", "chair")], FACTS[:-9]),
        # Whole words, where there is one line alone.
        ([f"Translate to French: s{n}" for n in "abc"], "Translate to French:"),
        ([f"Translate: {n}" for n in "abc"], "Translate: "),
        (["kettle", "kernel"], ""),
        (["lamp", "chair"], ""),
        # One question, asked again and again, is no instruction.
        (["Tell a joke."] * 9, ""),
        ([], ""),
    ],
)
def test_the_beginning_ends_with_a_line_or_a_word(texts: list[str], beginning: str) -> None:
    assert shared_beginning(texts) == beginning


def test_one_in_twenty_may_begin_otherwise() -> None:
    texts = [f"{FACTS}{number}" for number in range(95)]
    assert shared_beginning([*texts, *"abcde"]) == FACTS[:-9]
    assert shared_beginning([*texts, *"abcdefghij"]) == ""


def test_a_system_prompt_is_part_of_the_instruction() -> None:
    found = shared_instruction(["Be brief."] * 3, [f"{FACTS}{n}" for n in range(3)])
    assert found.text == f"Be brief.\n{FACTS[:-9]}"
    assert shared_instruction(["a", "b", "c"], ["1", "2", "3"]).text == ""
