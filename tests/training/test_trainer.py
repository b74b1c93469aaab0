"""The trainer's own arithmetic, which the end-to-end tests cannot see on a CPU without bf16."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.models.batches import Batch


@pytest.mark.fault(33)
@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_bf16_computes_in_bf16_and_keeps_trained_weights_in_fp32(
    mode: str, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ftcli.models import loss as losses

    original, seen = losses.summed_loss, []

    def watched(model: Any, *arguments: Any) -> Any:
        layer = model.get_base_model() if mode != "full" else model
        layer = layer.model.layers[0].mlp
        with_hook = layer.register_forward_hook(lambda *a: seen.append(a[2].dtype))
        loss = original(model, *arguments)
        with_hook.remove()
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        assert trained == {torch.float32}
        return loss

    monkeypatch.setattr(losses, "summed_loss", watched)
    recipe = write_recipe(
        method={"mode": mode}, training={"max_steps": 1, "batch_size": 4, "precision": "bf16"}
    )
    assert run(["train", str(recipe)]) == 0
    assert set(seen) == {torch.bfloat16}


def test_rows_longer_than_trl_s_limit_are_trained_on_whole(
    write_recipe: Callable[..., Path],
    rows_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of each row of an epoch, every label, whatever its length."""
    from ftcli.models import loss as losses

    original, seen = losses.summed_loss, []

    def watched(model: Any, batch: Batch) -> Any:
        seen.append((batch.input_ids.shape[1], batch.label_count))
        return original(model, batch)

    monkeypatch.setattr(losses, "summed_loss", watched)
    texts = (f"{number} " + "kettle, " * 200 * number for number in (1, 2, 3))
    rows_file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = {"train": rows_file.name, "format": "text", "validation": 0, "max_length": 8192}
    recipe = write_recipe(data=data, training={"epochs": 1, "batch_size": 1})
    assert run(["prepare", str(recipe), "--json"]) == 0
    prepared = json.loads(capsys.readouterr().out)
    assert prepared["longest_row"]["tokens"] > 1024
    assert run(["train", str(recipe)]) == 0
    assert max(length for length, _ in seen) == prepared["longest_row"]["tokens"]
    (_, *steps) = seen  # the first is the check of the longest batch
    assert sum(labelled for _, labelled in steps) == prepared["trained_tokens"]
