"""L2-SP in plan and estimate: memory, limits, disk space."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ftcli.cli import run
from ftcli.config.recipe import Model, Recipe
from ftcli.memory import Choices, estimate
from ftcli.memory.trained import l2_sp_bytes
from ftcli.models.architectures.find import find_architecture
from ftcli.models.load import load_base
from ftcli.models.methods import attach
from ftcli.training.l2_sp import L2SP
from ftcli.training.plan.learning_rate import BF16_ROUNDS_BELOW
from tests.commands.test_training import adapter_digest, train
from tests.conftest import Capture, Recipes, save_tiny_model
from tests.tiers import tiers
from tests.training.test_l2_sp import FP32, METHODS, RATE, STRENGTH, l2_sp


@pytest.mark.parametrize("name", tiers(METHODS, *list(METHODS)[::3]))
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_the_estimate_counts_starting_weights(name: str, stored: str, tmp_path: Path) -> None:
    from ftcli.models.methods import quantization
    from ftcli.training.plan.plan import choices_of_method

    base = save_tiny_model(tmp_path / "tiny", head_dim=16)
    if stored == "bfloat16":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        model.save_pretrained(base)
    recipe = Recipe.model_validate(
        {"name": "a", "model": {"id": str(base)}, "method": METHODS[name], "data": {"train": "r"}}
    )
    model = load_base(
        str(base),
        Model(id=str(base)),
        dtype=torch.float32,
        attention="sdpa",
        device=torch.device("cpu"),
        quantization=quantization(recipe.method, torch.float32),
    )
    files = getattr(torch, stored) if name == "full" else None
    found = L2SP(attach(model, recipe.method, seed=0), STRENGTH, files)
    architecture = find_architecture(str(base))
    choices = Choices(**choices_of_method(recipe.method), precision="fp32", l2_sp=True)
    assert found.bytes == l2_sp_bytes(architecture, choices) > 0
    with_l2_sp = estimate(architecture, choices)
    without = estimate(architecture, Choices(**choices_of_method(recipe.method), precision="fp32"))
    assert with_l2_sp.breakdown["l2_sp"] == found.bytes and "l2_sp" not in without.breakdown
    parts = {name: size for name, size in with_l2_sp.breakdown.items() if name != "context"}
    assert sum(parts.values()) == with_l2_sp.peak_bytes >= without.peak_bytes + found.bytes


def test_a_7b_in_16_bits_has_starting_weights_of_two_bytes() -> None:
    architecture = find_architecture("7b")
    for precision in ("bf16", "pure-bf16"):
        found = estimate(architecture, Choices("full", precision=precision, l2_sp=True))
        assert found.breakdown["l2_sp"] == 2 * 6_738_415_616


def test_all_of_the_way_back_is_refused_before_any_row_is_read(
    write_recipe: Recipes, rows_file: Path, capsys: Capture
) -> None:
    rows_file.unlink()
    recipe = write_recipe(training={"learning_rate": "1e-3", **l2_sp(1000)})
    commands = (["prepare"], ["train"], ["train", "--dry-run"], ["estimate-vram"])
    for name, *flags in commands:
        assert run([name, str(recipe), *flags]) == 2
        said = capsys.readouterr().err
        assert "tiny.yaml:" in said and "training: each step goes learning_rate × l2_sp" in said
        assert "0.001 × 1000 = 1 of" in said and "well below 1000" in said
    # LoRA's own learning rate, which the plan gives.
    flags = ["--set", "training.learning_rate=auto", "--set", "training.l2_sp=5000"]
    for name, *more in commands[:3]:
        assert run([name, str(recipe), *flags, *more]) == 2
        said = capsys.readouterr().err
        assert "--set training.l2_sp=5000: training.l2_sp: each step" in said
        assert "0.0002 × 5000 = 1 of" in said


def test_plan_and_estimate_show_it_with_its_memory(write_recipe: Recipes, capsys: Capture) -> None:
    recipe = write_recipe(method=METHODS["full"], training={**FP32, **l2_sp(100)})
    assert run(["train", str(recipe), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "l2 sp 100.0 a step pulls weights up to 10.00% of the way back to their start" in said
    assert "our hook before the optimizer's step" in said
    assert run(["train", str(recipe), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert run(["estimate-vram", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    starts_bytes = found["breakdown"]["l2_sp"]
    assert starts_bytes == plan["estimate"]["breakdown"]["l2_sp"] == 4 * found["total_parameters"]
    assert run(["estimate-vram", "--model", "7b", "--json"]) == 0
    assert "l2_sp" not in json.loads(capsys.readouterr().out)["breakdown"]


@pytest.mark.parametrize("pull", [0.001, 0.01, 0.1])
def test_in_16_bits_a_pull_is_lost_below_the_distance_that_the_plan_names(pull: float) -> None:
    """Where fp32 comes a share of the way back in each step, bf16 stays where it is."""
    least = BF16_ROUNDS_BELOW / pull
    for dtype, away, is_lost in (
        (torch.bfloat16, 0.9 * least, True),
        (torch.bfloat16, 8 * least, False),
        (torch.float32, 0.9 * least, False),
    ):
        model = nn.Linear(64, 64, bias=False).to(dtype)
        with torch.no_grad():
            model.weight.copy_(torch.linspace(1, 2, 4096).view(64, 64))
        penalty = L2SP(model, pull / RATE, None)
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        penalty.attach(optimizer, model)
        with torch.no_grad():  # so far away, measured by what the weight is then
            model.weight.div_(1 - away)
            moved = model.weight.clone()
        for _ in range(5):
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
        assert torch.equal(model.weight, moved) == is_lost, (dtype, away)


def test_pure_bf16_warns_that_pulls_are_lost(write_recipe: Recipes, capsys: Capture) -> None:
    words = "pulls this small round to zero until a weight is 0.02 of its own size away"
    pure = {**FP32, "precision": "pure-bf16", "max_steps": 1, **l2_sp(100)}
    recipe = write_recipe(method=METHODS["full"], training=pure)
    assert run(["train", str(recipe), "--dry-run"]) == 0
    assert words in " ".join(capsys.readouterr().out.split())
    assert run(["train", str(recipe)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and "set training.precision: bf16" in said
    kept = write_recipe("kept", method=METHODS["full"], training={**FP32, **l2_sp(100)})
    assert run(["train", str(kept), "--dry-run"]) == 0
    assert "round to zero" not in capsys.readouterr().out


def test_an_adapter_s_start_has_its_room_on_the_disk(write_recipe: Recipes, tmp_path: Path) -> None:
    from ftcli.runs.atomic import folder_bytes
    from ftcli.training.plan.decide import make_plan
    from tests.training.planning import PROFILE, SMALL, cpu, recipe

    sizes = {}
    for strength in (0, 100):
        plan = make_plan(recipe(training=l2_sp(strength)), SMALL, PROFILE, cpu())
        sizes[strength] = plan.checkpoint_bytes
    assert sizes[100] - sizes[0] == 4 * plan.estimate.trainable_parameters
    assert train(write_recipe("pulled", training={**FP32, **l2_sp(100)})) == 0
    assert train(write_recipe("free", training=FP32)) == 0
    runs = tmp_path / "runs"
    kept, free = (folder_bytes(runs / name / "checkpoints") for name in ("pulled", "free"))
    assert kept > free and adapter_digest(runs / "pulled") != adapter_digest(runs / "free")
