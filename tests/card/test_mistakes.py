"""Mistakes that only a card would feel, made one by one: each is found without a card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ftcli.kernels import dequantised, lora, varlen
from ftcli.kernels import head as head_module
from ftcli.models import batches, loss
from ftcli.models.batches import Batch
from ftcli.training import building, collators, trainer
from ftcli.training.trainer import FtcliTrainer
from tests.card import pretended
from tests.card.budget import problems
from tests.card.conftest import Jobs
from tests.tiers import tiers

pytestmark = pytest.mark.card

Patch = pytest.MonkeyPatch


def wrap(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """`around(own, *arguments)` in the place of a function."""
    own = getattr(owner, name)
    patch.setattr(owner, name, lambda *a, **k: around(own, *a, **k))


def an_index_on_the_host(patch: Patch) -> None:
    wrap(
        patch,
        Batch,
        "to",
        lambda own, self, device: replace(own(self, device), sources=self.sources),
    )


def a_table_on_the_host(patch: Patch) -> None:
    def around(own: Any, self: Batch, device: Any) -> Batch:
        return replace(own(self, device), targets=self.targets)

    wrap(patch, Batch, "to", around)


def a_weight_on_the_host(patch: Patch) -> None:
    def around(own: Any, *arguments: Any, **keywords: Any) -> Any:
        base = own(*arguments, **keywords)
        norm = base.get_submodule("model.norm")
        norm.weight = nn.Parameter(torch.ones(norm.weight.shape, device="cpu"))
        return base

    from tests.card import steps

    wrap(patch, steps, "_base", around)


def a_constant_on_the_host(patch: Patch) -> None:
    def around(own: Any, hidden: Tensor, *rest: Any, **keywords: Any) -> Any:
        return own(hidden * torch.ones(hidden.shape[-1]), *rest, **keywords)

    wrap(patch, loss._HeadLoss, "apply", around)


def a_number_read_of_each_micro_batch(patch: Patch) -> None:
    def around(own: Any, *arguments: Any) -> Tensor:
        found = own(*arguments)
        assert found.item() == 1
        return found

    wrap(patch, loss, "summed_loss", around)


def losses_moved_to_the_host(patch: Patch) -> None:
    def around(own: Any, *arguments: Any) -> Tensor:
        found = own(*arguments)
        found.detach().cpu()
        return found

    wrap(patch, loss, "summed_loss", around)


def a_norm_read_twice(patch: Patch) -> None:
    wrap(
        patch,
        FtcliTrainer,
        "_get_grad_norm",
        lambda own, *a, **k: torch.tensor(own(*a, **k)).cuda(),
    )


def memory_that_is_not_pinned(patch: Patch) -> None:
    patch.setattr(Batch, "pinned", lambda self: self)


def a_copy_that_waits(patch: Patch) -> None:
    patch.setattr(Batch, "to", lambda self, device: self._each(lambda t: t.to(device)))


def a_choice_by_values(patch: Patch) -> None:
    def around(own: Any, hidden: Tensor, *rest: Any) -> Any:
        return own(hidden[hidden.abs().sum(1) > 0], *rest)

    wrap(patch, loss._HeadLoss, "apply", around)


def targets_that_are_sorted(patch: Patch) -> None:
    wrap(patch, head_module._Chunk, "_add_to_head", lambda own, self, *a: self.targets.unique())


def logits_that_are_copied(patch: Patch) -> None:
    wrap(patch, head_module.Head, "logits", lambda own, *a: own(*a).clone())


def small_tiles(patch: Patch) -> None:
    patch.setattr(head_module, "HEAD_TILE_TOKENS", {"cuda": 2048})


def lora_that_is_not_fused(patch: Patch) -> None:
    patch.setattr(building, "fuse_lora", lambda _: 0)


def updates_in_fp32(patch: Patch) -> None:
    patch.setattr(lora, "autocast_type", lambda _: torch.float32)


def a_head_in_fp32(patch: Patch) -> None:
    def around(own: Any, one: Tensor, other: Tensor) -> Tensor:
        with torch.autocast("cuda", enabled=False):
            return own(one.float(), other.float())

    wrap(patch, head_module, "product", around)


def padded_rows(patch: Patch) -> None:
    patch.setattr(trainer, "training_collator", lambda _, pad: collators.PaddingCollator(pad))


def prefixes_that_are_not_shared(patch: Patch) -> None:
    wrap(patch, batches, "build_prefix_tree", lambda own, rows, share: own(rows, share=False))


def keys_for_every_head(patch: Patch) -> None:
    def around(
        own: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **k: Any
    ) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        return own(module, query, key, value, *rest, **k)

    from transformers import AttentionInterface

    own = varlen.attend
    patch.setitem(
        AttentionInterface._global_mapping, varlen.NAME, lambda *a, **k: around(own, *a, **k)
    )


def hidden_states_in_fp32(patch: Patch) -> None:
    wrap(
        patch,
        lora,
        "_forward",
        lambda own, layer, peft, hidden, *a: own(layer, peft, hidden.float(), *a),
    )


def an_optimizer_of_many_kernels(patch: Patch) -> None:
    patch.setitem(building.OPTIMIZERS, "adamw", "adamw_torch")


def gradients_clipped_one_by_one(patch: Patch) -> None:
    patch.setattr(pretended, "FOREACH", ())


def layers_computed_again(patch: Patch) -> None:
    def around(own: Any, training: Any, plan: Any, *rest: Any) -> Any:
        again = plan.training.model_copy(update={"gradient_checkpointing": True})
        return own(training, plan.model_copy(update={"training": again}), *rest)

    wrap(patch, building, "sft_config", around)


def weights_dequantised_for_each_product(patch: Patch) -> None:
    def product(rows: Tensor, layer: Any, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(rows, dequantised.dequantised(layer, rows.dtype), bias)

    patch.setattr(lora, "product_of_4_bits", product)


MISTAKES: dict[Callable[[Patch], None], tuple[str, str]] = {
    an_index_on_the_host: ("lora", "error"),
    a_table_on_the_host: ("lora", "error"),
    a_weight_on_the_host: ("lora", "error"),
    a_constant_on_the_host: ("lora", "error"),
    a_number_read_of_each_micro_batch: ("lora", "sync"),
    losses_moved_to_the_host: ("lora", "sync"),
    a_norm_read_twice: ("lora", "sync"),
    memory_that_is_not_pinned: ("lora", "copy"),
    a_copy_that_waits: ("lora", "copy"),
    a_choice_by_values: ("lora", "error"),
    targets_that_are_sorted: ("lora", "error"),
    logits_that_are_copied: ("lora", "launches"),
    small_tiles: ("lora", "launches"),
    lora_that_is_not_fused: ("qlora", "launches"),
    updates_in_fp32: ("lora", "megabytes"),
    a_head_in_fp32: ("lora", "type"),
    padded_rows: ("lora", "megabytes"),
    prefixes_that_are_not_shared: ("lora", "megabytes"),
    keys_for_every_head: ("lora", "megabytes"),
    hidden_states_in_fp32: ("lora", "megabytes"),
    an_optimizer_of_many_kernels: ("lora", "launches"),
    gradients_clipped_one_by_one: ("lora", "launches"),
    layers_computed_again: ("lora", "launches"),
    weights_dequantised_for_each_product: ("qlora", "launches"),
}


# One of each kind; the others in the slow tier.
QUICK = (
    an_index_on_the_host,
    a_number_read_of_each_micro_batch,
    memory_that_is_not_pinned,
    a_head_in_fp32,
    lora_that_is_not_fused,
    hidden_states_in_fp32,
)


@pytest.mark.parametrize("mistake", tiers(MISTAKES, *QUICK), ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_found(
    mistake: Callable[[Patch], None], job_of: Jobs, monkeypatch: Patch
) -> None:
    method, kind = MISTAKES[mistake]
    mistake(monkeypatch)
    found = problems(job_of, "llama", method)
    assert any(each.startswith(kind) for each in found), found
