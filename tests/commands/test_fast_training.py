"""The whole training with every optimisation and with none: the same losses, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.runs.folder import RunFolder
from tests.commands import test_end_to_end as end_to_end
from tests.tiers import tiers

TRAINING = {
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": "1e-2",
    "eval_steps": 3,
    "precision": "fp32",
}
METHODS = end_to_end.METHODS | {"dora": {"mode": "lora", "rank": 4, "dora": True}}


def losses(folder: RunFolder) -> list[float]:
    records = map(json.loads, folder.metrics.read_text().splitlines())
    return [record.get("loss", record.get("eval_loss")) for record in records]


@pytest.mark.parametrize("method", tiers(["lora", "full", "dora", "qlora", "bottleneck"], "lora"))
@pytest.mark.parametrize("checkpointing", tiers([False, True], False))
def test_the_loss_curve_is_that_of_the_plain_path(
    method: str, checkpointing: bool, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rate = "1e-3" if method == "full" else "1e-2"
    training = TRAINING | {"learning_rate": rate, "gradient_checkpointing": checkpointing}
    curves = {}
    for name, keys in (("fast", {"packing": 60}), ("plain", {"optimizations": "off"})):
        recipe = write_recipe(name, method=METHODS[method], training=training | keys)
        assert run(["train", str(recipe)]) == 0
        folder = RunFolder(tmp_path / "runs" / name)
        curves[name] = losses(folder)
        planned = json.loads(folder.plan.read_text())
        assert bool(planned["training"]["packing"]) == (name == "fast")
    assert len(curves["fast"]) == len(curves["plain"]) > 10
    assert curves["plain"][-1] < curves["plain"][0] - 0.1, "something is learnt"
    pairs = zip(curves["fast"], curves["plain"], strict=True)
    assert max(abs(fast - plain) for fast, plain in pairs) <= 1e-3


def test_memory_that_runs_out_halves_the_tokens(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    from ftcli.models import loss as losses
    from ftcli.models.batches import Batch

    original, seen = losses.summed_loss, []

    def short(model: Any, batch: Batch) -> Any:
        seen.append(batch.input_ids.numel())
        if len(seen) > 1 and seen[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch)

    monkeypatch.setattr(losses, "summed_loss", short)
    recipe = write_recipe(training=TRAINING | {"epochs": 1, "packing": 160})
    assert run(["train", str(recipe)]) == 0
    said = capsys.readouterr().err
    assert said.count("out of memory in step 1: micro-batch 8 → 4 from here on") == 1
    tried = [size for size in seen[1:] if size > 100]
    assert len(tried) == 1 and max(seen) <= 160 + 8 * 8
    assert max(size for size in seen[2:] if size not in tried) <= 80 + 4 * 8
