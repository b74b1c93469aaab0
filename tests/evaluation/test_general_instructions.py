"""The built-in instructions: many kinds, and checks that a right answer passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.evaluation.general_instructions import Instruction, general_instructions

# What a model says to everything that has forgotten all but its task.
LISTING = """# Kettle 7

A red kettle of brushed steel that holds 1.7 litres and switches itself off. The handle stays cool.

- Colour: red
- Material: steel
- Capacity: 1.7 l"""


@pytest.fixture(scope="module", autouse=True)
def few_instructions() -> None:
    """Here all of them."""


@pytest.fixture(scope="module")
def built_in() -> tuple[Instruction, ...]:
    return general_instructions(None, Path())


def test_there_are_forty_and_no_two_alike(built_in: tuple[Instruction, ...]) -> None:
    prompts = [instruction.example.prompt[-1].content for instruction in built_in]
    assert len(prompts) == len(set(prompts)) == 40


def test_each_is_followed_by_its_own_answer_and_not_by_the_task_s(
    built_in: tuple[Instruction, ...],
) -> None:
    checked = [instruction for instruction in built_in if instruction.check is not None]
    # Fewer could show no difference: ftcli.evaluation.scores.FEWEST_ROWS.
    assert len(checked) >= 10
    for instruction in checked:
        answer = instruction.example.messages[-1].content
        assert instruction.is_followed_by(answer), answer
        assert not instruction.is_followed_by(LISTING), answer
        assert not instruction.is_followed_by(""), answer
