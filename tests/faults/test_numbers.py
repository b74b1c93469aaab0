"""A NaN or infinite loss or gradient ends the run before any weight changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ftcli.cli import run
from ftcli.runs.checkpoints import latest_valid
from ftcli.runs.folder import RunFolder
from ftcli.shell import shown_path
from tests.conftest import Capture, Observed, Patch, Recipes, pair, save_tiny_model

TRAINING = {
    "epochs": 1,
    "batch_size": 4,
    "micro_batch_size": 2,
    "packing": False,
    "eval_steps": 4,
    "save_steps": 100,
    "precision": "fp32",
}
# A character that no other row holds, and its place among 48 rows.
RARE, PLACE = "§", 17


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in which the embedding of one rare token is NaN."""
    folder = save_tiny_model(
        tmp_path_factory.mktemp("base") / "poisoned", head_dim=16, tie_word_embeddings=False
    )
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(RARE)["input_ids"]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tokens[-1]] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_rows(path: Path, poisoned_row: int | None) -> None:
    rows = [pair(number) for number in range(48)]
    rows[40]["completion"] *= 3  # another one is the longest, which is tried first
    if poisoned_row is not None:
        rows[poisoned_row]["prompt"] += RARE
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def all_finite(folder: Path) -> bool:
    files = sorted(folder.rglob("*.safetensors"))
    assert files, "nothing was saved"
    return all(
        bool(torch.isfinite(tensor).all()) for f in files for tensor in load_file(f).values()
    )


def failed(recipe: Path, capsys: Capture) -> str:
    capsys.readouterr()
    assert run(["train", str(recipe), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "loss_not_finite"
    message: str = error["message"]
    return message


@pytest.mark.fault(15)
def test_a_packed_row_with_a_nan_loss_is_named(
    poisoned: Path, write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    """With the rows of its own micro-batch, and no others."""
    write_rows(tmp_path / "rows.jsonl", PLACE)
    data = {"train": "rows.jsonl", "validation": 0, "shuffle": False, "max_length": 256}
    model, training = {"id": str(poisoned)}, TRAINING | {"packing": True}
    message = failed(write_recipe(model=model, data=data, training=training), capsys)
    assert f"rows.jsonl:{PLACE + 1}" in message
    assert message.count("rows.jsonl:") == 2


@pytest.mark.fault(15)
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_row_with_a_nan_loss_is_named(
    mode: str,
    poisoned: Path,
    write_recipe: Recipes,
    tmp_path: Path,
    capsys: Capture,
    observed: Observed,
) -> None:
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, PLACE)
    data = {"train": rows.name, "validation": 0, "shuffle": False, "max_length": 256}
    recipe = write_recipe(
        method={"mode": mode}, model={"id": str(poisoned)}, data=data, training=TRAINING
    )
    message = failed(recipe, capsys)
    if mode == "full":  # the base itself is what is trained, and is no number from the start
        assert "embed_tokens.weight is NaN or infinite" in message
        return
    step = PLACE // 4 + 1
    assert f"the loss became nan in step {step}, before any weight was changed, on " in message
    assert f"rows.jsonl:{PLACE + 1}" in message
    folder = RunFolder(tmp_path / "runs" / "tiny")
    found = latest_valid(folder, folder.read_manifest()["run_id"]).checkpoint
    assert found is not None and found.position.step == step - 1
    assert str(shown_path(found.folder)) in message and all_finite(folder.path)
    assert folder.state != "finished" and not folder.adapter.exists()
    write_rows(rows, None)
    observed(f"exit 1 in step {step}, rows.jsonl:{PLACE + 1} named, finite weights of {step - 1}")


@pytest.mark.fault(15)
def test_a_validation_row_with_a_nan_loss_is_named(
    poisoned: Path, write_recipe: Recipes, tmp_path: Path, capsys: Capture, observed: Observed
) -> None:
    write_rows(tmp_path / "held.jsonl", 5)
    rows = [pair(number + 100) for number in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "rows.jsonl", "validation": "held.jsonl", "max_length": 256}
    recipe = write_recipe(model={"id": str(poisoned)}, data=data, training=TRAINING)
    message = failed(recipe, capsys)
    assert "the loss became nan in a validation" in message and "held.jsonl:6;" in message
    observed("a validation: held.jsonl:6 named")


@pytest.mark.fault(15)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_infinite_gradient_stops_before_the_step(
    precision: str, write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """The loss is finite, and its slope is not: √x at 0."""
    from ftcli.models import loss as losses

    original, calls = losses.summed_loss, []

    def steep(*arguments: Any) -> Any:
        calls.append(1)
        loss = original(*arguments)
        # One call for the longest batch, then two a step.
        return loss + torch.sqrt(loss - loss.detach()) if len(calls) == 5 else loss

    monkeypatch.setattr(losses, "summed_loss", steep)
    data = {"train": "rows.jsonl", "validation": 0, "shuffle": False, "max_length": 256}
    recipe = write_recipe(data=data, training=TRAINING | {"precision": precision})
    message = failed(recipe, capsys)
    assert "the gradient became nan in step 2" in message or "became inf in step 2" in message
    for line in (5, 6, 7, 8):
        assert f"rows.jsonl:{line}" in message
    assert all_finite(tmp_path / "runs" / "tiny")
