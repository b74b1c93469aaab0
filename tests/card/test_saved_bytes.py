"""What a layer saves for the backward pass on a pretended card, against the estimate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers.integrations import sdpa_attention

from ftcli.memory.activations.layers import layers_bytes
from ftcli.training.job import TrainJob
from ftcli.training.trainer import FtcliTrainer
from tests.card.budget import SMALL
from tests.card.conftest import Jobs
from tests.card.pretended import pretended_card
from tests.card.steps import take_steps
from tests.tiers import tiers

pytestmark = pytest.mark.card

METHODS = ("lora", "qlora", "full", "bottleneck", "prefix-tuning")


def saved(patch: pytest.MonkeyPatch, job: TrainJob, card: str = "RTX 4090") -> int:
    """Bytes of the storages that one forward pass saves on the card, without weights and copies of
    them."""
    found: dict[int, Any] = {}
    weights: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        storage, made_by = tensor.untyped_storage(), tensor.grad_fn
        is_cast = made_by is not None and made_by.name() == "TBackward0"  # of a weight
        if tensor.device.type == "cuda" and storage._cdata not in weights and not is_cast:
            found[storage._cdata] = storage
        return tensor

    def hooks(trainer: FtcliTrainer) -> AbstractContextManager[Any]:
        found.clear()
        for each in (*trainer.model.parameters(), *trainer.model.buffers()):
            weights.add(each.untyped_storage()._cdata)
        return saved_tensors_hooks(pack, lambda tensor: tensor)

    patch.setattr(FtcliTrainer, "_offload", hooks)
    with pretended_card(card):
        take_steps(job)
    return sum(storage.nbytes() for storage in found.values())


CASES = list(product(("llama", "qwen2"), METHODS, ("off", "auto")))
QUICK = (("llama", "qlora", "off"), ("llama", "full", "auto"))


@pytest.mark.parametrize("family, method, optimizations", tiers(CASES, *QUICK))
def test_a_layer_saves_what_is_estimated(
    job_of: Jobs, family: str, method: str, optimizations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, counts, formula = SMALL if method == "full" else {}, {}, {}
    for layers in (2, 3):
        keys = {"gradient_checkpointing": False, "optimizations": optimizations}
        job = job_of(family, method, sizes=sizes | {"num_hidden_layers": layers}, **keys)
        counts[layers] = saved(monkeypatch, job)
        formula[layers] = layers_bytes(job.model.architecture, job.plan.estimated)
    found, estimated = (each[3] - each[2] for each in (counts, formula))
    # LoRA's copies of A and B in 16 bits are estimated with the weights.
    assert found == pytest.approx(estimated, rel=0.02)


def test_a_layer_on_a_t4_keeps_the_keys_of_each_head(
    job_of: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no fused attention for keys that heads share; scores are never made."""
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)
    counts, formula = {}, {}
    for layers in (2, 3):
        keys = {"gradient_checkpointing": False, "sizes": {"num_hidden_layers": layers}}
        job = job_of("llama", "qlora", card="T4", **keys)
        assert job.plan.training.precision == "fp16" and not job.plan.training.packing
        counts[layers] = saved(monkeypatch, job, "T4")
        formula[layers] = layers_bytes(job.model.architecture, job.plan.estimated)
    found, estimated = (each[3] - each[2] for each in (counts, formula))
    assert found == pytest.approx(estimated, rel=0.02)
    shared = layers_bytes(job.model.architecture, replace(job.plan.estimated, shares_keys=True))
    assert shared < 0.99 * formula[3]
