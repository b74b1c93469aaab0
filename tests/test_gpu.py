"""What only a CUDA card can show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ftcli.cli import run

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_a_card() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA card, and torch finds none")


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_training_on_a_card_learns_and_merges(
    mode: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(method={"mode": mode})
    assert run(["train", str(recipe)]) == 0
    result = json.loads((tmp_path / "runs/tiny/run.json").read_text())["result"]
    assert result["eval_loss"] < result["first_eval_loss"]
    assert run(["merge", str(recipe)]) == 0
