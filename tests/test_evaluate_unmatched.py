"""Settings that nothing in the rows answers to are told, and fitting ones are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.loading import load_recipe
from ftcli.metrics.scorer import Question
from ftcli.stages.evaluate.unmatched import unmatched

PROMPT = "Write the listing.\nProduct: Mug 7\nCategory: kitchen\nColour: red"
QUESTIONS = [Question(PROMPT, "# Mug 7\nA red mug.", PROMPT, PROMPT)] * 12


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"format": {"type": "regex", "pattern": r"# [^\n]+\n[^\n]+"}}, []),
        (
            {"format": {"type": "json"}},
            ["eval.format: 0 of 12 answers of the rows themselves have that form"],
        ),
        ({"faithfulness": {"ignore": ["category"]}}, []),
        (
            {"faithfulness": {"ignore": ["Categry", "Price"]}},
            [
                "eval.faithfulness.ignore: no row has a fact 'Categry'; did you mean Category?",
                "eval.faithfulness.ignore: no row has a fact 'Price'",
            ],
        ),
        ({"faithfulness": {"facts": "Product:(?s:.*)"}}, []),
        (
            {"faithfulness": {"facts": "Produkt:(?s:.*)"}},
            [
                "eval.faithfulness.facts: found nothing in 12 of 12 prompts, whose facts are the "
                "whole prompt"
            ],
        ),
    ],
)
def test_what_nothing_answers_to(
    settings: dict[str, Any], said: list[str], write_recipe: Callable[..., Path]
) -> None:
    loaded = load_recipe(write_recipe(eval=settings))
    assert list(unmatched(loaded, QUESTIONS)) == said
