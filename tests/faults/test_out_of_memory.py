"""Memory runs out in the middle of a run, which continues with smaller micro-batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcli.cli import run
from ftcli.models.batches import Batch
from ftcli.runs.checkpoints import latest_valid
from ftcli.runs.folder import RunFolder
from ftcli.shell import shown_path
from tests.commands.test_training import stop_at
from tests.conftest import Capture, Observed, Patch, Recipes, pair
from tests.tiers import tiers

TRAINING = {
    "epochs": 1,
    "batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": "1e-2",
    "eval_steps": 2,
    "save_steps": 2,
    "precision": "fp32",
}
ON_A_CARD = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
ON_A_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:118] can't allocate memory: you tried")


def train(recipe: Path, *flags: str) -> int:
    return run(["train", str(recipe), *flags])


def fail_backward(
    monkeypatch: Patch, fails: Callable[[int, int], bool], error: Exception
) -> list[tuple[int, int]]:
    """Run out of memory halfway through the backward passes (number, rows) that `fails` names.

    Behind the second of two layers, where some gradients have been added up and others have not.
    """
    from ftcli.models import loss as losses

    original, seen = losses.summed_loss, []

    def watched(model: Any, batch: Batch) -> torch.Tensor:
        seen.append((len(seen) + 1, batch.row_count))
        if not fails(*seen[-1]):
            return original(model, batch)

        def refuse(_: torch.Tensor) -> None:
            raise error

        layer = model.get_base_model().model.layers[0]
        hook = layer.register_forward_hook(lambda *a: a[2].register_hook(refuse) and None)
        try:
            return original(model, batch)
        finally:
            hook.remove()

    monkeypatch.setattr(losses, "summed_loss", watched)
    return seen


def losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [r.get("loss", r.get("eval_loss")) for r in records]


@pytest.fixture
def undisturbed(write_recipe: Recipes, tmp_path: Path) -> list[float]:
    assert train(write_recipe("undisturbed", training=TRAINING)) == 0
    return losses(tmp_path / "runs" / "undisturbed")


@pytest.mark.fault(32)
@pytest.mark.parametrize("error", tiers([ON_A_CARD, ON_A_CPU], ON_A_CARD), ids=["card", "cpu"])
def test_a_step_is_repeated_with_half_the_rows(
    error: Exception,
    undisturbed: list[float],
    write_recipe: Recipes,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
    observed: Observed,
) -> None:
    recipe = write_recipe("short", training=TRAINING)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        # One pass of the check, two of each step: the second half of step 2.
        seen = fail_backward(patch, lambda call, rows: call == 5 and rows == 4, error)
        assert train(recipe) == 0
    assert [rows for _, rows in seen] == [4, 4, 4, 4, 4, *[2] * 12]
    said = capsys.readouterr().err
    assert said.count("out of memory in step 2: micro-batch 4 → 2 from here on") == 1
    folder = RunFolder(tmp_path / "runs" / "short")
    furthest = max(abs(a - b) for a, b in zip(losses(folder.path), undisturbed, strict=True))
    assert furthest <= 1e-3
    found = latest_valid(folder, folder.read_manifest()["run_id"]).checkpoint
    assert found is not None and found.position.micro_batch == 2
    plan = json.loads(folder.plan.read_text())
    assert plan["training"]["micro_batch_size"] == 4, "what was planned stays on record"
    observed(f"step 2 done again as 2 × 4, said once; losses within {furthest:.0e}")


@pytest.mark.fault(32)
def test_a_smaller_micro_batch_stays_when_the_run_resumes(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    recipe = write_recipe("short", training=TRAINING, method={"mode": "lora", "dropout": 0.1})
    runs = {}
    for stopped in (False, True):
        with monkeypatch.context() as patch:
            fail_backward(patch, lambda call, rows: call == 5 and rows == 4, ON_A_CARD)
            if stopped:
                stop_at(2, patch)
            assert train(recipe, "--fresh") == (130 if stopped else 0)
        runs[stopped] = RunFolder(tmp_path / "runs" / ("short-2" if stopped else "short"))
    seen = fail_backward(monkeypatch, lambda *_: False, ON_A_CARD)
    assert train(recipe) == 0
    assert {rows for _, rows in seen} == {2}
    digests = {
        (folder.adapter / "adapter_model.safetensors").read_bytes() for folder in runs.values()
    }
    assert len(digests) == 1


@pytest.mark.fault(32)
def test_the_longest_row_is_tried_first_wherever_it_stands(
    write_recipe: Recipes, rows_file: Path, monkeypatch: Patch, capsys: Capture, observed: Observed
) -> None:
    """The longest row is the last; what it needs is known before the first step."""
    rows = [pair(number) for number in range(31)]
    rows.append({"prompt": "long", "completion": "kettle " * 150})
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": rows_file.name, "validation": 0, "shuffle": False, "max_length": 400}
    recipe = write_recipe(data=data, training=TRAINING | {"packing": False})
    from ftcli.models import loss as losses

    original, lengths = losses.summed_loss, []

    def short(model: Any, batch: Batch) -> torch.Tensor:
        lengths.append(batch.input_ids.shape)
        if batch.input_ids.shape[1] > 100 and batch.row_count > 1:
            raise ON_A_CARD
        return original(model, batch)

    monkeypatch.setattr(losses, "summed_loss", short)
    assert train(recipe) == 0
    said = capsys.readouterr().err
    assert said.index("out of memory in the longest batch: micro-batch 2 → 1") < said.index(
        "preflight: longest"
    )
    assert "in step" not in said
    longest = max(length for _, length in lengths)
    assert lengths[0] == (4, longest) and lengths[2][0] == 1
    observed(f"the last row ({longest} tokens) tried first: 4 → 1 rows before step 1, none later")


@pytest.mark.fault(32)
def test_one_row_is_too_much(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """The step before is saved and finite, and the run resumes once there is memory."""
    recipe = write_recipe(training=TRAINING | {"save_steps": 100, "eval_steps": 100})
    with monkeypatch.context() as patch:
        fail_backward(patch, lambda call, _: call > 8, ON_A_CARD)
        capsys.readouterr()
        assert train(recipe, "--json") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    folder = RunFolder(tmp_path / "runs" / "tiny")
    assert error["code"] == "memory" and "out of memory" in error["message"]
    assert f"saved: {shown_path(folder.checkpoint(3))}" in error["message"]
    assert train(recipe) == 0
    assert "resumes at step 3" in capsys.readouterr().err


@pytest.mark.fault(32)
def test_a_validation_continues_with_half_the_rows(
    undisturbed: list[float],
    write_recipe: Recipes,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
) -> None:
    from ftcli.training import trainer

    original, calls = trainer.row_losses, []

    def short(model: Any, batch: Batch) -> Any:
        calls.append(batch.row_count)
        if len(calls) == 5 and batch.row_count == 4:
            raise ON_A_CARD
        return original(model, batch)

    monkeypatch.setattr(trainer, "row_losses", short)
    assert train(write_recipe("short", training=TRAINING)) == 0
    said = capsys.readouterr().err
    assert said.count("out of memory in a validation: micro-batch 4 → 2") == 1
    assert set(calls[:5]) == {4} and set(calls[5:]) == {2}
    pairs = zip(losses(tmp_path / "runs" / "short"), undisturbed, strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1e-5
