"""Frozen embeddings and head in RAM: the same numbers, and as much less on the GPU as is estimated.

`cpu:0` stands for the GPU: torch takes it for another device than `cpu`, and computes on it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcli.config.recipe import Lora, Model, Qlora
from ftcli.errors import MachineError, UsageError
from ftcli.kernels.small_gpu import keep_ends_in_ram
from ftcli.memory import Choices
from ftcli.memory.activations.head_bytes import LOSS_CHUNK_POSITIONS
from ftcli.memory.fit.search import estimate_on
from ftcli.memory.hardware import GIB, find_card
from ftcli.memory.known_models import known_architecture
from ftcli.memory.static import ends_bytes, quantization_bytes, weights_bytes
from ftcli.models.batches import packed, padded
from ftcli.models.device import input_device
from ftcli.models.load import load_base
from ftcli.models.loss import row_losses
from ftcli.models.methods import attach, quantization
from ftcli.training.plan.decide import make_plan
from tests.card.conftest import Jobs
from tests.card.pretended import pretended_card
from tests.card.steps import take_steps
from tests.conftest import save_tiny_model
from tests.kernels.test_packed_families import assert_same, model_of, rows, through
from tests.tiers import tiers
from tests.tiny_models import shake
from tests.training.planning import LARGE, PROFILE, SMALL, cpu, recipe

pytestmark = pytest.mark.card

GPU = torch.device("cpu", 0)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("name", tiers(("gemma2", "gemma3_text", "llama", "phi3"), "gemma2"))
def test_losses_gradients_and_logits_are_the_same(name: str, packs: bool) -> None:
    """Gemma scales its embeddings and ties them to the head; Gemma 2 caps its logits."""
    batch = packed(rows(), share_prefix=True) if packs else padded(rows(), 0)
    plain, kept = model_of(name, "lora"), model_of(name, "lora")
    keep_ends_in_ram(kept.get_base_model(), GPU)
    assert_same(through(kept, batch.to(GPU)), through(plain, batch))
    losses, _ = row_losses(kept, batch.to(GPU))
    assert torch.allclose(losses, row_losses(plain, batch)[0])
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        found, expected = (each.eval()(input_ids=ids).logits for each in (kept, plain))
    assert torch.allclose(found, expected, atol=1e-5) and input_device(kept) == GPU


@pytest.mark.parametrize("mode", ["lora", "qlora"])
def test_a_base_is_loaded_with_its_ends_in_ram(mode: str, tmp_path: Path) -> None:
    """Without hooks of accelerate, which would copy whole modules to the GPU."""
    save_tiny_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    method: Any = {"lora": Lora(mode="lora"), "qlora": Qlora(mode="qlora")}[mode]
    found = []
    for offload in (False, True):
        network = load_base(
            str(tmp_path / "base"),
            Model(id=str(tmp_path / "base")),
            dtype=torch.float32,
            attention="sdpa",
            device=GPU if offload else torch.device("cpu"),
            quantization=quantization(method, torch.float32),
            embedding_offload=offload,
        )
        assert not any(hasattr(each, "_hf_hook") for each in network.modules())
        layer: Any = network.get_submodule("model.layers.0.mlp.up_proj")
        assert (type(layer).__name__ == "Linear4bit") == (mode == "qlora")
        found.append(network(input_ids=torch.arange(1, 9)[None]).logits)
    ends = (network.get_input_embeddings().weight, network.get_output_embeddings().weight)
    assert all(each.device == torch.device("cpu") for each in ends)
    assert layer.weight.device.type == "cpu" and input_device(network) == GPU
    assert torch.allclose(*found, atol=1e-5)
    adapted = attach(network, method, seed=0)
    shake(adapted)
    adapted.to(torch.device("cpu", 0))
    assert ends[0].device == torch.device("cpu"), "Trainer and accelerate move models"
    assert through(adapted, padded(rows(), 0).to(GPU))[1]


def test_a_step_waits_for_words_and_labels_alone(job_of: Jobs) -> None:
    """On a pretended card: words are looked up in RAM, and so are the head's rows of labels, once a
    chunk of them."""
    job = job_of("llama", "qlora", embedding_offload=True)
    assert job.plan.training.embedding_offload
    with pretended_card():
        steps = take_steps(job)
    estimated = job.plan.estimated
    chunks = math.ceil(estimated.label_tokens / LOSS_CHUNK_POSITIONS)
    for step in steps[:-1]:
        assert not step.strays
        assert len(step.syncs) <= 3 + (1 + chunks) * estimated.gradient_accumulation
        assert all("head.py" in each or "small_gpu.py" in each for each in step.copies)


def test_the_gpu_holds_as_much_less_as_is_estimated() -> None:
    architecture = known_architecture("llama-3.1-8b")
    assert architecture is not None
    choices = Choices("qlora", seq_len=512)
    kept = replace(choices, embedding_offload=True)
    less = weights_bytes(architecture, choices) - weights_bytes(architecture, kept)
    assert less == ends_bytes(architecture, kept) == 2 * 128_256 * 4096 * 2
    assert quantization_bytes(architecture, choices) == quantization_bytes(architecture, kept)
    found = estimate_on(architecture, kept, find_card("6GB").hardware)
    assert found.device_bytes <= 5.3e9 and found.high_bytes <= 6 * GIB


def test_a_plan_takes_it_where_nothing_else_fits() -> None:
    rows_of = replace(PROFILE, longest_tokens=6500)
    for size, taken in (("3060", False), ("3070", True)):
        plan = make_plan(recipe("qlora"), LARGE, rows_of, find_card(size).hardware)
        assert plan.training.embedding_offload is taken
    reason = plan.reasons["training.embedding_offload"]
    assert reason.startswith("nothing else fits; 500 MiB less on the GPU; about ")
    assert reason.endswith("% more time a step (estimated)")
    assert plan.headline().count("embeddings in RAM") == 1
    little = replace(find_card("3070").hardware, ram_bytes=GIB)
    with pytest.raises(MachineError, match="GiB are free, of which 70% may be taken"):
        make_plan(recipe("qlora"), LARGE, rows_of, little)


@pytest.mark.parametrize(
    ("mode", "method", "words"),
    [
        ("full", {}, "full fine-tuning trains or replaces them"),
        ("lora", {"modules_to_save": ["lm_head"]}, "method.modules_to_save trains lm_head"),
        ("prompt-tuning", {}, "prompt tuning trains or replaces them"),
    ],
)
def test_it_is_refused_where_the_ends_are_trained(
    mode: str, method: dict[str, Any], words: str
) -> None:
    asked = recipe(mode, method=method, training={"embedding_offload": True})
    with pytest.raises(UsageError, match=f"training.embedding_offload: {words}; leave it to auto"):
        make_plan(asked, SMALL, PROFILE, find_card("A100 80GB").hardware)


def test_it_needs_a_gpu() -> None:
    asked = recipe("lora", training={"embedding_offload": True})
    with pytest.raises(MachineError, match=r"training\.embedding_offload: true needs a CUDA GPU"):
        make_plan(asked, SMALL, PROFILE, cpu())
