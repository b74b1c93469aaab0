"""Hidden states in RAM between the passes: the same gradients, as many bytes as are estimated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ftcli.errors import MachineError, UsageError
from ftcli.kernels import small_gpu
from ftcli.kernels.small_gpu import in_ram
from ftcli.memory.activations.layers import layers_bytes, offloaded_bytes
from ftcli.memory.hardware import GIB, find_card
from ftcli.models.batches import packed, padded
from ftcli.models.loss import summed_loss
from ftcli.training.plan.decide import make_plan
from tests.card.budget import SMALL
from tests.card.conftest import Jobs
from tests.card.pretended import pretended_card
from tests.card.steps import take_steps
from tests.kernels.test_packed_families import METHODS, model_of, rows
from tests.tiers import tiers
from tests.training.planning import LARGE, PROFILE, cpu, recipe
from tests.training.planning import SMALL as SMALL_MODEL

pytestmark = pytest.mark.card


@contextmanager
def counted(sizes: list[int], hidden: int) -> Iterator[None]:
    """`in_ram`, with the bytes of what it keeps."""
    own, found = in_ram(hidden), {}

    def pack(tensor: Tensor) -> Any:
        kept = own.pack_hook(tensor)
        if isinstance(kept, tuple) and id(kept[1]) not in found:
            found[id(kept[1])] = kept[1]
            sizes.append(kept[1].nbytes)
        return kept

    with saved_tensors_hooks(pack, own.unpack_hook):
        yield


def gradients(model: Any, batch: Any, sizes: list[int] | None) -> dict[str, Tensor]:
    """Of a checkpointed pass, with hidden states in RAM if their sizes are asked for."""
    from ftcli.kernels.attention import attention_for

    model.zero_grad()
    with attention_for(model, batch.layout):
        if sizes is None:
            loss = summed_loss(model, batch)
        else:
            with counted(sizes, 64):
                loss = summed_loss(model, batch)
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("method", tiers(METHODS, "lora", "full"))
@pytest.mark.parametrize("name", tiers(("llama", "gemma2", "phi3"), "llama"))
def test_gradients_are_the_same_to_the_bit(name: str, method: str, packs: bool) -> None:
    model = model_of(name, method)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    batch = packed(rows(), share_prefix=True) if packs else padded(rows(), 0)
    sizes: list[int] = []
    plain, kept = gradients(model, batch, None), gradients(model, batch, sizes)
    assert plain.keys() == kept.keys() and plain
    assert all(torch.equal(plain[name], kept[name]) for name in plain)
    inputs = batch.input_ids.numel() * 64 * 4
    assert sizes.count(inputs) >= model.config.num_hidden_layers, "an input for each layer"


def test_a_tensor_of_another_shape_stays() -> None:
    hooks = in_ram(8)
    for shape in ((3, 8), (2, 3, 4), (8,)):
        tensor = torch.ones(shape)
        assert hooks.pack_hook(tensor) is tensor
    kept = hooks.pack_hook(torch.arange(48.0).view(2, 3, 8))
    assert torch.equal(hooks.unpack_hook(kept), torch.arange(48.0).view(2, 3, 8))


@pytest.mark.parametrize("method", tiers(("lora", "qlora", "full"), "qlora"))
def test_the_card_keeps_as_much_less_as_is_estimated(
    job_of: Jobs, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted on a pretended card, whose steps wait for none of the copies."""
    sizes: list[int] = []
    monkeypatch.setattr("ftcli.training.trainer.in_ram", lambda hidden: counted(sizes, hidden))
    asked = {"gradient_checkpointing": True, "activation_offload": True}
    shape = {"num_hidden_layers": 4} | (SMALL if method == "full" else {})
    job = job_of("llama", method, sizes=shape, **asked)
    with pretended_card():
        steps = take_steps(job)
    assert job.plan.training.activation_offload
    estimated, architecture = job.plan.estimated, job.model.architecture
    assert sum(sizes) / len(steps) == pytest.approx(
        offloaded_bytes(architecture, estimated), rel=0.02
    )
    for step in steps[:-1]:
        assert len(step.syncs) <= 3 and not step.copies and not step.strays
    without = replace(estimated, activation_offload=False)
    less = layers_bytes(architecture, without) - layers_bytes(architecture, estimated)
    each = estimated.residual_bytes * architecture.hidden * estimated.tokens
    assert less == (architecture.layers - 2) * each


def test_a_plan_takes_it_where_nothing_else_fits() -> None:
    hardware = find_card("4090").hardware
    for tokens, offloads in ((8_000, False), (40_000, True)):
        long = replace(PROFILE, longest_tokens=tokens)
        plan = make_plan(recipe("qlora"), LARGE, long, hardware)
        assert plan.training.activation_offload is offloads
        reason = plan.reasons["training.activation_offload"]
        assert ("GiB go to RAM and back in each micro-batch" in reason) is offloads
    assert "hidden states in RAM" in plan.headline()
    little = replace(hardware, ram_bytes=4 * GIB)
    with pytest.raises(Exception, match="GiB are free, of which 70% may be taken"):
        make_plan(recipe("qlora"), LARGE, long, little)


def test_it_is_refused_without_checkpointing() -> None:
    asked = {"activation_offload": True, "gradient_checkpointing": False}
    with pytest.raises(UsageError, match="true keeps in RAM what gradient checkpointing"):
        make_plan(recipe("lora", training=asked), LARGE, PROFILE, find_card("4090").hardware)


def test_asked_for_it_turns_checkpointing_on_and_needs_a_gpu() -> None:
    asked = recipe("lora", training={"activation_offload": True})
    plan = make_plan(asked, LARGE, PROFILE, find_card("A100 80GB").hardware)
    assert plan.training.gradient_checkpointing and plan.training.activation_offload
    with pytest.raises(MachineError, match="needs a CUDA GPU; leave it to auto"):
        make_plan(asked, SMALL_MODEL, PROFILE, cpu())


def test_pinned_memory_is_asked_for_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    own = torch.empty

    def empty(*arguments: Any, pin_memory: bool = False, **keywords: Any) -> Tensor:
        asked.append((pin_memory, keywords.get("device")))
        return own(*arguments, **keywords)

    monkeypatch.setattr(small_gpu.torch, "empty", empty)
    with pretended_card():
        in_ram(8).pack_hook(own((1, 2, 8), device="cuda"))
    in_ram(8).pack_hook(own((1, 2, 8)))
    assert asked == [(True, "cpu"), (False, "cpu")]
