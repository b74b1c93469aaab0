"""The real small model, asked before any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.conftest import save_recipe

SHOP = Path(__file__).parents[2] / "recipes" / "data" / "shop"

pytestmark = pytest.mark.slow


def test_examples_show_the_house_format_to_the_base(
    tmp_path: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """About two minutes: 60 answers on a CPU."""
    data = {
        "train": str(SHOP / "train.jsonl"),
        "test": 12,
        "validation": 0,
        "system": "Write the shop listing.",
    }
    recipe = save_recipe(
        tmp_path, small_model, "asked", data=data, generation={"max_new_tokens": 112}
    )
    assert run(["prepare", str(recipe), "--try-prompting", "--shots", "3", "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)["advice"]
    prompting = advice["prompting"]
    zero, few = prompting["zero_shot"], prompting["few_shot"]
    assert zero["format_rate"] == 0
    assert few["chrf"] > zero["chrf"] + 0.05
    assert few["prompt_tokens"] > 3 * zero["prompt_tokens"]
    assert advice["sentences"][0].startswith(("Prompting with 3 examples", "Prompting already"))
