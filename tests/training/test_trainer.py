"""The trainer's own arithmetic, which the end-to-end tests cannot see on a CPU without bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.models.batches import Batch
from tests.commands.test_training import adapter_digest, stop_at
from tests.conftest import Capture, Patch, Recipes


@pytest.mark.fault(33)
@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_bf16_computes_in_bf16_and_keeps_trained_weights_in_fp32(
    mode: str, write_recipe: Recipes, monkeypatch: Patch
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
    write_recipe: Recipes, rows_file: Path, monkeypatch: Patch, capsys: Capture
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
    assert sum(labelled for _, labelled in steps) == prepared["label_tokens"]


def test_a_step_that_is_read_ahead_is_the_same(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Through a stop, a resume and a lack of memory, as on a card."""
    from ftcli.models import loss as losses
    from ftcli.training import trainer

    training = {"epochs": 1, "batch_size": 4, "micro_batch_size": 2, "precision": "fp32"}
    method = {"mode": "lora", "rank": 4, "dropout": 0.1}
    recipes = [write_recipe(name, method=method, training=training) for name in ("now", "ahead")]
    original, calls = losses.summed_loss, list[int]()

    def short_of_memory(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise MemoryError
        return original(*arguments)

    for recipe, devices in zip(recipes, (("cuda",), ("cuda", "cpu")), strict=True):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "READS_AHEAD", devices)
            patch.setattr(losses, "summed_loss", short_of_memory)
            stop_at(5, patch)
            assert run(["train", str(recipe)]) == 130
        monkeypatch.setattr(trainer, "READS_AHEAD", devices)
        assert run(["train", str(recipe)]) == 0
    now, ahead = (adapter_digest(tmp_path / "runs" / name) for name in ("now", "ahead"))
    assert now == ahead


def test_an_overflow_of_fp16_is_no_line_of_the_metrics(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    """JSON has no word for infinity; the scaler skips such a step."""
    from ftcli.training.trainer import FtcliTrainer

    original = FtcliTrainer._get_grad_norm

    def overflows(trainer: Any, *arguments: Any, **named: Any) -> float:
        norm = original(trainer, *arguments, **named)
        return float("inf") if trainer.state.global_step == 0 else norm

    monkeypatch.setattr(FtcliTrainer, "_get_grad_norm", overflows)
    assert run(["train", str(write_recipe(training={"max_steps": 2, "batch_size": 4}))]) == 0
    text = (tmp_path / "runs/tiny/metrics.jsonl").read_text()
    steps = [json.loads(line) for line in text.splitlines() if '"grad_norm"' in line]
    assert "Infinity" not in text and [each["step"] for each in steps] == [2]
