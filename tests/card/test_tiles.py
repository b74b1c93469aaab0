"""MLPs in tiles along the sequence: the same gradients, as many bytes as are estimated."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftcli.errors import UsageError
from ftcli.kernels import small_gpu
from ftcli.kernels.attention import attention_for
from ftcli.kernels.small_gpu import tile_mlps
from ftcli.memory import Choices
from ftcli.memory.activations.layers import rebuilt_layer_bytes, temporaries_bytes
from ftcli.memory.architecture import PACKED_TYPES
from ftcli.memory.fit.limits import largest
from ftcli.memory.fit.request import FitRequest, sparing
from ftcli.memory.hardware import find_card
from ftcli.memory.known_models import known_architecture
from ftcli.models.batches import packed, padded
from ftcli.models.loss import row_losses, summed_loss
from ftcli.training.plan.decide import make_plan
from ftcli.training.trainer import FtcliTrainer
from tests.card.budget import SMALL
from tests.card.conftest import Jobs
from tests.card.pretended import pretended_card
from tests.card.steps import take_steps
from tests.card.test_saved_bytes import saved
from tests.kernels.test_packed_families import (
    METHODS,
    assert_same,
    measured,
    model_of,
    rows,
    through,
)
from tests.tiers import tiers
from tests.training.planning import LARGE, PROFILE, recipe

pytestmark = pytest.mark.card

# Tokens of a tile that divide no batch here.
FEW = 7


def checkpointed(name: str, method: str) -> PreTrainedModel:
    model = model_of(name, method)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("method", tiers(METHODS, "lora", "full", "bottleneck"))
@pytest.mark.parametrize("name", tiers(sorted(PACKED_TYPES), "llama", "gemma2"))
def test_one_tile_changes_no_bit_and_several_round_otherwise(
    name: str, method: str, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over tokens are sums of sums then."""
    batch = packed(rows(), share_prefix=True) if packs else padded(rows(), 0)
    model = checkpointed(name, method)
    plain = through(model, batch)
    assert tile_mlps(model) == model.config.num_hidden_layers
    whole = through(model, batch)
    assert whole[0] == plain[0]
    assert all(torch.equal(whole[1][each], plain[1][each]) for each in plain[1])
    monkeypatch.setattr(small_gpu, "TILE_TOKENS", FEW)
    assert_same(through(model, batch), plain)


def test_it_goes_with_hidden_states_in_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_gpu, "TILE_TOKENS", FEW)
    model, batch = checkpointed("llama", "lora"), packed(rows(), share_prefix=True)
    tile_mlps(model)
    plain = through(model, batch)
    with attention_for(model, batch.layout):
        with small_gpu.in_ram(model.config.hidden_size):
            loss = summed_loss(model, batch)
        kept = measured(model, loss, loss)
    assert kept[0] == plain[0]
    assert all(torch.equal(kept[1][each], plain[1][each]) for each in plain[1])


def test_scores_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of validation, where there are no gradients."""
    monkeypatch.setattr(small_gpu, "TILE_TOKENS", FEW)
    model, batch = model_of("llama", "lora").eval(), padded(rows(), 0)
    plain, _ = row_losses(model, batch)
    tile_mlps(model)
    tiled, _ = row_losses(model, batch)
    assert torch.allclose(tiled, plain, rtol=1e-6)


def products(model: PreTrainedModel, batch: Any) -> Counter[str]:
    """Tokens that go through each down projection in a step, by pass."""
    seen: Counter[str] = Counter()

    def count(_: Any, read: tuple[Tensor], __: Any) -> None:
        where = "backward" if torch._C._current_graph_task_id() >= 0 else "forward"
        seen[where] += read[0].numel() // read[0].shape[-1]

    for name, module in model.named_modules():
        if name.endswith("mlp.down_proj"):
            module.register_forward_hook(count)
    through(model, batch)
    return seen


@pytest.mark.parametrize("name, times", [("llama", 1), ("gemma2", 2)])
def test_an_mlp_runs_again_once(name: str, times: int) -> None:
    """As with checkpointing alone; Gemma 2 keeps what its MLP returns, for the norm after it."""
    model, batch = checkpointed(name, "full"), packed(rows(), share_prefix=True)
    tile_mlps(model)
    seen = products(model, batch)
    assert seen["backward"] == times * seen["forward"] > 0


def test_dropout_drops_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against tiles whose inner results autograd keeps."""
    monkeypatch.setitem(METHODS, "lora", METHODS["lora"].model_copy(update={"dropout": 0.5}))
    monkeypatch.setattr(small_gpu, "TILE_TOKENS", FEW)
    model, batch = model_of("llama", "lora"), packed(rows(), share_prefix=True)
    tile_mlps(model)
    found = []
    for forward in (small_gpu._forward, lambda _, own, hidden: small_gpu._by_tiles(own, hidden)):
        for layer in model.get_base_model().model.layers:
            tiled: Any = layer.mlp.forward
            monkeypatch.setattr(
                layer.mlp, "forward", type(tiled)(forward, tiled.args[0], tiled.args[1])
            )
        torch.manual_seed(11)
        found.append(through(model, batch))
    assert_same(found[0], found[1])
    torch.manual_seed(12)
    assert through(model, batch)[0] != found[0][0], "nothing was dropped"


@pytest.mark.parametrize("optimizations", ["off", "auto"])
@pytest.mark.parametrize("method", tiers(("lora", "qlora", "full", "bottleneck"), "qlora", "full"))
def test_a_layer_keeps_what_is_estimated(
    job_of: Jobs, method: str, optimizations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted without checkpointing, which would keep it for one layer at a time."""
    sizes, counts = SMALL if method == "full" else {}, {}
    own = FtcliTrainer.training_step

    def without_checkpointing(trainer: FtcliTrainer, model: Any, *others: Any) -> Tensor:
        model.gradient_checkpointing_disable()
        return own(trainer, model, *others)

    monkeypatch.setattr(FtcliTrainer, "training_step", without_checkpointing)
    keys = {"tiled_mlp": True, "optimizations": optimizations}
    for layers in (2, 3):
        job = job_of("llama", method, sizes=sizes | {"num_hidden_layers": layers}, **keys)
        counts[layers] = saved(monkeypatch, job)
    architecture, estimated = job.model.architecture, job.plan.estimated
    assert job.plan.training.gradient_checkpointing and job.plan.training.tiled_mlp
    kept = rebuilt_layer_bytes(architecture, estimated)
    kept -= round(temporaries_bytes(architecture, estimated, 0))
    assert counts[3] - counts[2] == pytest.approx(kept, rel=0.02)


def test_a_step_in_tiles_stays_on_the_card(job_of: Jobs) -> None:
    with pretended_card():
        steps = take_steps(job_of("llama", "qlora", tiled_mlp=True, activation_offload=True))
    for step in steps[:-1]:
        assert len(step.syncs) <= 3 and not step.copies and not step.strays


def test_a_plan_takes_tiles_before_ram() -> None:
    hardware, model = find_card("4090").hardware, known_architecture("llama-3.1-8b")
    assert model is not None
    found = []
    for tokens in (8_000, 25_000, 40_000, 60_000):
        long = replace(PROFILE, longest_tokens=tokens)
        plan = make_plan(recipe("qlora"), model, long, hardware)
        found.append((plan.training.tiled_mlp, plan.training.activation_offload))
    assert found == [(False, False), (True, False), (False, True), (True, True)]
    assert "gradient checkpointing on, MLPs in tiles, hidden states in RAM" in plan.headline()
    assert "15 tiles of up to 4,096 tokens" in plan.reasons["training.tiled_mlp"]
    whole = recipe("qlora", training={"tiled_mlp": False})
    plan = make_plan(whole, model, replace(PROFILE, longest_tokens=25_000), hardware)
    assert not plan.training.tiled_mlp and plan.training.activation_offload


def test_long_rows_fit_a_4090() -> None:
    """As docs/vram.md says."""
    architecture = known_architecture("llama-3.1-8b")
    assert architecture is not None
    hardware = find_card("4090").hardware
    choices = Choices("qlora", rank=32, optimized=True, liger=True)
    request = FitRequest(architecture, choices, batch_rows=1)
    every = sparing(request, hardware)
    assert every.tiling and every.offloading and every.embedding_offload
    kinds = ("tiled_mlp", "activation_offload", "embedding_offload")
    found = []
    for taken in ((), kinds[:1], kinds[1:2], kinds[:2], kinds):
        some = replace(choices, **dict.fromkeys(taken, True))
        found.append(largest(architecture, some, "max-length", hardware).value)
    page = (Path(__file__).parents[2] / "docs" / "vram.md").read_text(encoding="utf-8")
    section = page.split("## Long rows and small GPUs")[1].split("\n## ")[0]
    assert found == [int(each.replace(",", "")) for each in re.findall(r"\| ([\d,]+) \|", section)]
    assert found[3] >= 65_536
    plain = replace(every, liger=False)
    assert largest(architecture, plain, "max-length", hardware).value >= 65_536


@pytest.mark.parametrize(
    "model, training, words",
    [
        (LARGE, {"gradient_checkpointing": False}, "set training.gradient_checkpointing to auto"),
        (replace(LARGE, model_type="mixtral"), {}, "not tested for mixtral"),
    ],
)
def test_it_is_refused_where_it_cannot_be(model: Any, training: Any, words: str) -> None:
    asked = recipe("lora", training=training | {"tiled_mlp": True})
    with pytest.raises(UsageError, match=rf"training\.tiled_mlp: true .*{words}"):
        make_plan(asked, model, PROFILE, find_card("4090").hardware)
    left = make_plan(recipe("lora"), replace(model), PROFILE, find_card("4090").hardware)
    assert not left.training.tiled_mlp
