"""The real small model goes through the same commands as the tiny one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from ftcli.cli import run
from ftcli.memory.choices import Mode
from ftcli.runs.folder import RunFolder
from tests.commands.test_end_to_end import ADAPTER, STATE, TOKENIZER, ask, files_below
from tests.tiers import tiers
from tests.tiny_models import collate

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SHORT = ("training.max_steps=8", "training.batch_size=4", "training.eval_steps=4")
SMALL = ("data.validation=4", "generation.max_new_tokens=24")
# Method → its learning rate, and by how much held-out loss lies below the base's after eight steps
# of four rows; docs/methods.md states both.
MARGINS: dict[Mode, tuple[float | Literal["auto"], float]] = {
    "full": ("auto", 0.2),
    "lora": (2e-3, 0.5),
    "qlora": (2e-3, 0.3),
    "bottleneck": ("auto", 0.8),
    "prefix-tuning": ("auto", 0.1),
    "prompt-tuning": ("auto", 0.1),
}
BEGIN_AT_THE_BASE = ("full", "lora", "bottleneck")


def overrides(model: Path, output: Path, *more: str) -> list[str]:
    pairs = [f"model.id={model}", f"output={output}", *SHORT, *SMALL, *more]
    return [word for pair in pairs for word in ("--set", pair)]


@pytest.fixture(scope="module")
def base_loss(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Of the untrained base on the validation rows that all methods below are judged by."""
    import torch

    from ftcli.config.recipe import Model
    from ftcli.data.tokenizing.arrow_rows import read_split
    from ftcli.models.batches import of_tensors
    from ftcli.models.load import load_base
    from ftcli.models.loss import row_losses

    folder = tmp_path_factory.mktemp("base") / "run"
    flags = overrides(small_model, folder)
    assert run(["prepare", str(RECIPES / "ecommerce-lora.yaml"), *flags]) == 0
    base = load_base(
        str(small_model),
        Model(id="small"),
        dtype=torch.float32,
        attention="sdpa",
        device=torch.device("cpu"),
    )
    batch = collate(read_split(folder / "data", "validation").to_pylist(), 0)
    with torch.no_grad():
        losses, tokens = row_losses(base, of_tensors(batch["input_ids"], batch["labels"]))
    return float(losses.sum() / tokens.sum())


@pytest.mark.parametrize("mode", tiers(["lora", "qlora"], "lora"))
def test_a_shipped_recipe_runs_on_the_small_model(
    mode: Mode,
    small_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = ("training.max_steps=3", "training.eval_steps=3", "training.batch_size=2")
    few += ("generation.max_new_tokens=8",)
    rate = f"training.learning_rate={MARGINS[mode][0]}"
    flags = overrides(small_model, tmp_path / "run", *few, rate)
    path = RECIPES / f"ecommerce-{mode}.yaml"
    prepared = ask(capsys, "prepare", path, "--preview", "1", *flags)
    trained_on = "".join(text for text, trained in prepared["preview"][0] if trained)
    assert trained_on.startswith("# ") and trained_on.endswith(" EUR<|im_end|>")
    assert prepared["test_rows"] == 60

    trained = ask(capsys, "train", path, *flags)
    assert trained["eval_loss"] < trained["first_eval_loss"]
    assert trained["total_parameters"] == 134_515_008
    folder = RunFolder(Path(trained["run_dir"]))
    steps = folder.steps_saved()
    assert steps[-1] == trained["steps"]
    kept = {f"checkpoints/step-{s}/{n}" for s in steps for n in ADAPTER | STATE}
    kept |= {"data/replay.arrow"}
    kept |= {f"adapter/{n}" for n in ADAPTER | TOKENIZER}
    kept |= {f"data/{n}" for n in ("prepared.json", "advice.json", "test.arrow", "train.arrow")}
    kept |= {"data/validation.arrow", "README.md", "metrics.jsonl", "plan.json"}
    kept |= {"report.html", "speed.jsonl", "prompt_manifest.json", "recipe.yaml", "run.json"}
    assert files_below(folder.path) - {".lock"} == kept

    scores = ask(capsys, "eval", folder.path, "--limit", "2", "--no-forgetting")
    assert scores["tuned"]["loss"] < scores["base"]["loss"]
    prompt = ("Product: Mug\nColour: red", "--max-new-tokens", "8")
    assert ask(capsys, "generate", folder.path, *prompt)["answer"].strip()
    monkeypatch.setattr("ftcli.export.merge_run.ROWS_COMPARED", 2)
    assert ask(capsys, "merge", folder.path)["verdict"] == "pass"


@pytest.mark.slow
def test_full_training_moves_every_weight(
    write_recipe: Callable[..., Path],
    small_model: Path,
    rows_file: Path,
    tmp_path: Path,
) -> None:
    """At 2e-5, weights held in bf16 would mostly stay where they are."""
    from safetensors.torch import load_file

    recipe = write_recipe(
        model={"id": str(small_model)},
        method={"mode": "full"},
        data={"train": rows_file.name, "validation": 0},
        training={"max_steps": 1, "batch_size": 2, "warmup_ratio": 0},
    )
    assert run(["train", str(recipe)]) == 0
    before = load_file(small_model / "model.safetensors")
    after = load_file(tmp_path / "runs" / "tiny" / "model" / "model.safetensors")
    name = "model.layers.10.mlp.down_proj.weight"
    moved = (before[name] != after[name]).float().mean().item()
    assert moved > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("mode", MARGINS)
def test_every_method_learns_the_demo_data(
    mode: Mode,
    base_loss: float,
    small_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [f"training.learning_rate={MARGINS[mode][0]}", f"method={{mode: {mode}}}"]
    words += ["training.eval_steps=8", "data.replay=null"]
    flags = overrides(small_model, tmp_path / "run", *words)
    trained = ask(capsys, "train", RECIPES / "ecommerce-lora.yaml", *flags)
    if mode in BEGIN_AT_THE_BASE:
        assert trained["first_eval_loss"] == pytest.approx(base_loss, abs=0.02)
    assert trained["eval_loss"] < base_loss - MARGINS[mode][1]
