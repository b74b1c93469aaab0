"""Whole optimizer steps on a pretended GPU: where tensors are, what waits, what is launched."""

from __future__ import annotations

import json

import pytest

from tests.card.budget import BUDGET, CASES, costs, counted
from tests.card.conftest import FAMILIES, METHODS, Jobs

pytestmark = pytest.mark.card

MOST_SYNCS = 3  # of a step: is the loss finite, the gradient's norm, the loss
QUICK = {("llama", m) for m in METHODS} | {(f, "qlora") for f in FAMILIES}
PARAMETERS = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES
]


@pytest.mark.parametrize("family, method", PARAMETERS)
def test_a_step_stays_on_the_card(job_of: Jobs, family: str, method: str) -> None:
    step = counted(job_of, family, method)
    assert not step.strays
    assert not step.copies
    assert len(step.syncs) <= MOST_SYNCS, step.syncs
    assert set(step.product_types) == {"bfloat16"}, "products as planned"
    budget = json.loads(BUDGET.read_text())[f"{family} {method}"]
    for part, found in costs(job_of, family, method, step).items():
        for name, value in found.items():
            assert value <= budget[part][name], f"{name} of {part}"


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_wait_for_nothing(job_of: Jobs, micro_batch: int) -> None:
    step = counted(job_of, "llama", "lora", micro_batch_size=micro_batch, packing=False)
    assert len(step.syncs) <= MOST_SYNCS and not step.copies and not step.strays
