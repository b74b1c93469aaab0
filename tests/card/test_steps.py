"""Whole optimizer steps on a pretended GPU: where tensors are, what waits, what is launched."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from ftcli.memory.speed import step_work
from tests.card.budget import CASES, MOST_SYNCS, SMALL, counted, problems
from tests.card.conftest import Jobs
from tests.card.pretended import pretended_card
from tests.card.steps import take_steps
from tests.tiers import tiers

pytestmark = pytest.mark.card

QUICK = {("llama", "full"), ("llama", "lora"), ("gemma2", "qlora"), ("mixtral", "qlora")}
PARAMETERS = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES
]


@pytest.mark.parametrize("family, method", PARAMETERS)
def test_a_step_stays_on_the_card_and_in_its_budget(job_of: Jobs, family: str, method: str) -> None:
    assert problems(job_of, family, method) == []


@pytest.mark.parametrize("micro_batch", tiers((1, 2), 2))
def test_micro_batches_wait_for_nothing(job_of: Jobs, micro_batch: int) -> None:
    for packs in (True, False):
        step = counted(job_of, "llama", "lora", micro_batch_size=micro_batch, packing=packs)
        assert len(step.syncs) <= MOST_SYNCS and not step.copies and not step.strays


def test_nothing_of_a_training_is_left_when_it_is_over(job_of: Jobs) -> None:
    left: list[weakref.ref[torch.nn.Module]] = []
    with pretended_card():
        take_steps(job_of("llama", "qlora"), watched=left)
    gc.collect()
    assert left and left[0]() is None


def test_the_pretended_card_is_gone_afterwards() -> None:
    with pretended_card():
        assert torch.ones(2, device="cuda").device.type == "cuda"
    assert not torch.cuda.is_available() and torch._C._get_accelerator().type == "cpu"
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(2, device="cuda")


@pytest.mark.parametrize("method", tiers(("full", "lora", "qlora"), "qlora"))
def test_the_time_s_formula_counts_the_products_of_a_step(job_of: Jobs, method: str) -> None:
    """All but those of the attention's own kernel."""
    sizes = SMALL if method == "full" else {}
    job = job_of("llama", method, sizes=sizes)
    with pretended_card():
        counted = take_steps(job)[1]
    no_keys = replace(job.plan.estimated, longest_row=0)
    work = step_work(job.model.architecture, no_keys)
    assert counted.product_flops == pytest.approx(work.product_flops, rel=0.05)
