"""The measuring script without a card: its grid, its rows, and one training on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.memory.hardware import find_card
from ftcli.models.batches import Batch
from scripts import measure_vram, vram_error, vram_points
from tests.tiers import tiers

ROOT = Path(__file__).parents[2]

H100 = find_card("H100")
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}


def as_estimated(point: vram_points.Point) -> dict[str, int]:
    """The measurements of a GPU if every estimate were exact."""
    found = vram_points.estimate_of(point, H100)
    return {
        "allocated_bytes": found.peak_bytes,
        "reserved_bytes": found.reserved_bytes,
        "nvidia_smi_bytes": found.device_bytes,
        "context_bytes": 2**29,
        "trainable_parameters": found.trainable_parameters,
        "retries": 0,
    }


def test_every_row_says_what_was_trained(tmp_path: Path) -> None:
    """Read back and scored, figures that equal the estimate have no error."""
    table = tmp_path / "own.csv"
    grid = list(vram_points.points("small"))
    for point in grid:
        rows = vram_points.table_rows(point, as_estimated(point), H100.model)
        measure_vram.append_rows(table, rows)
    scored, left_out = vram_error.score_table(table)
    assert not left_out and len(scored) == 3 * len(grid)
    for each in scored:
        assert abs(each.error) < 1e-3 and each.covered, each.run.row
    assert [each.run.row["row_id"] for each in scored][::3][:2] == ["own-1", "own-4"]


def test_points_in_the_table_are_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "own.csv"
    grid = list(vram_points.points("small"))
    due = list(measure_vram._due(grid, H100, table))
    assert len(due) < len(grid), "8B in fp32 is above every card"
    rows = vram_points.table_rows(due[0], as_estimated(due[0]), H100.model)
    measure_vram.append_rows(table, rows)
    assert list(measure_vram._due(grid, H100, table)) == due[1:]
    assert next(measure_vram._due(grid, find_card("A100 80GB"), table)) == due[0]
    assert "above the card" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti"),
        ("NVIDIA L40S", None),
    ],
)
def test_cards_by_the_names_that_nvidia_smi_gives(name: str, model: str | None) -> None:
    found = vram_points.card_named(name)
    assert (found and found.model) == model


@pytest.mark.parametrize("family", tiers(vram_points.FAMILIES, "full pure-bf16", "lora"))
def test_a_point_trains_rows_of_its_very_length(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ftcli.models import loss as losses
    from scripts.measure_point import measure_recipe

    shapes, original = set(), losses.summed_loss

    def watched(model: object, batch: Batch) -> torch.Tensor:
        rows, tokens = batch.input_ids.shape
        shapes.add((rows, tokens, batch.label_count == rows * (tokens - 1)))
        return original(model, batch)

    monkeypatch.setattr(losses, "summed_loss", watched)
    point = vram_points.Point("llama-3.2-1b", family, 32, 2, checkpointing=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure_vram.make_model(TINY, tmp_path / "model", device)
    recipe = measure_vram.write_point(point, tmp_path / "model", tmp_path / "point")
    found = measure_recipe(recipe)
    assert shapes == {(2, 32, True)}
    assert found["allocated_bytes" if device == "cuda" else "resident_bytes"]
    assert not list((tmp_path / "point" / "run").rglob("*.safetensors")), "nothing is saved"


def test_without_a_gpu_the_points_are_still_shown() -> None:
    command = [sys.executable, "-m", "scripts.measure_vram"]
    shown = subprocess.run(
        [*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "of 36 points may fit H100 80GB" in shown.stdout
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=hidden)
    assert refused.returncode == 1
    assert "torch finds no CUDA GPU" in refused.stderr
