"""The built-in text and instructions, and files of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.errors import DataError
from ftcli.evaluation.general_ability import (
    BUILT_IN_TEXT,
    Instruction,
    general_instructions,
    general_text,
)


def test_the_size_of_the_built_in_text() -> None:
    _, passages = general_text(None)
    words = [len(passage.split()) for passage in passages]
    assert 1200 <= sum(words) <= 1900
    assert len(passages) >= 20 and max(words) < 200
    assert sum(passage.startswith("Question: ") for passage in passages) >= 4
    assert len(set(passages)) == len(passages)
    assert "#" not in "".join(passages) and "How it was made" in BUILT_IN_TEXT.read_text()


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeff# a note\nOne\nmore\n \t\n\n\nTwo ü\n".encode())
    assert general_text(file) == (str(file), ("One\nmore", "Two ü"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"# only a note\n", "no passage"), (b"\xff\xfe", "not UTF-8")],
)
def test_a_file_without_text_says_so(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        general_text(file)
    assert caught.value.file == str(file)


# The answer to everything of a model that can only do its task.
LISTING = """# Kettle 7

A red kettle of brushed steel that holds 1.7 litres and switches itself off. The handle stays cool.

- Colour: red
- Material: steel
- Capacity: 1.7 l"""


@pytest.fixture(scope="module", autouse=True)
def few_instructions() -> None:
    """All of them here."""


@pytest.fixture(scope="module")
def built_in() -> tuple[Instruction, ...]:
    return general_instructions(None)


def test_there_are_forty_different_ones(built_in: tuple[Instruction, ...]) -> None:
    prompts = [instruction.example.prompt[-1].content for instruction in built_in]
    assert len(prompts) == len(set(prompts)) == 40


def test_each_is_followed_by_its_own_answer_and_not_by_the_task_s(
    built_in: tuple[Instruction, ...],
) -> None:
    checked = [instruction for instruction in built_in if instruction.check is not None]
    # Fewer could show no difference: ftcli.evaluation.statistics.MIN_ROWS.
    assert len(checked) >= 10
    for instruction in checked:
        answer = instruction.example.messages[-1].content
        assert instruction.is_followed_by(answer), answer
        assert not instruction.is_followed_by(LISTING), answer
        assert not instruction.is_followed_by(""), answer
