"""The trainer's own arithmetic, which the end-to-end tests cannot see on a CPU without bf16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_bf16_computes_in_bf16_and_keeps_trained_weights_in_fp32(
    mode: str, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ftcli.engine import trainer

    original, seen = trainer.summed_loss, []

    def watched(model: Any, *arguments: Any) -> Any:
        layer = model.get_base_model() if mode != "full" else model
        layer = layer.model.layers[0].mlp
        with_hook = layer.register_forward_hook(lambda *a: seen.append(a[2].dtype))
        loss = original(model, *arguments)
        with_hook.remove()
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        assert trained == {torch.float32}
        return loss

    monkeypatch.setattr(trainer, "summed_loss", watched)
    recipe = write_recipe(
        method={"mode": mode}, training={"max_steps": 1, "batch_size": 4, "precision": "bf16"}
    )
    assert run(["train", str(recipe)]) == 0
    assert set(seen) == {torch.bfloat16}
