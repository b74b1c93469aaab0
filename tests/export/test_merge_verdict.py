"""A merge is judged by its sum alone; what a stored type costs is said, and chosen by."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from ftcli.export.parity import Parity
from ftcli.export.verdict import MEASURABLE, Mismatch, cost_of, dtype_reason, exactness_of

ROWS = 16


def parity(*, worse: float = 0.0, spread: float = 0.0, **changes: Any) -> Parity:
    """16 rows of 50 tokens, each of them worse by `worse` nats per token, more or less."""
    signs = [1 if row % 2 else -1 for row in range(ROWS)]
    found = Parity(
        kl=1e-5,
        top1_agreement=0.9,
        max_logit_difference=1e-6,
        reference_losses=tuple(100.0 + row for row in range(ROWS)),
        losses=tuple(100.0 + row + 50 * (worse + spread * signs[row]) for row in range(ROWS)),
        label_tokens=(50,) * ROWS,
    )
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("difference", "compared_in", "passes"),
    [
        (9e-5, "float64", True),
        (1.1e-3, "float64", False),
        (1.1e-3, "float32", True),
        (1.1e-2, "float32", False),
        (math.nan, "float32", False),
        (math.inf, "float32", False),
    ],
)
def test_only_the_sum_decides(difference: float, compared_in: str, passes: bool) -> None:
    found = exactness_of(parity(max_logit_difference=difference, top1_agreement=0.5), compared_in)
    assert found.passes is passes


@pytest.mark.parametrize(
    ("found", "measurable"),
    [
        (parity(), False),
        (parity(worse=2 * MEASURABLE), True),
        (parity(worse=MEASURABLE / 10), False),  # certain, and too little to matter
        (parity(worse=2 * MEASURABLE, spread=1.0), False),  # the interval has 0
        (parity(worse=-2 * MEASURABLE), False),
        (parity(kl=2 * MEASURABLE), True),
        (parity(kl=math.nan), True),
    ],
)
def test_the_cost_of_a_stored_type(found: Parity, measurable: bool) -> None:
    assert cost_of(found, "bfloat16").is_measurable is measurable


def test_the_cost_is_paired_by_rows() -> None:
    cost = cost_of(parity(worse=0.02, spread=0.01), "bfloat16")
    assert cost.loss_before == pytest.approx((100 + 7.5) / 50)
    assert cost.loss_difference == pytest.approx(0.02) == cost.loss - cost.loss_before
    low, high = cost.loss_difference_interval
    # Between rows losses differ by 0.09 a token: unpaired, the interval would hold 0.
    assert 0.01 < low < 0.02 < high < 0.03


def test_the_reason_names_what_other_types_would_cost() -> None:
    dear, cheap = cost_of(parity(worse=0.02), "bfloat16"), cost_of(parity(), "float16")
    whole = cost_of(parity(), "float32")
    assert dtype_reason([cheap], []) == "the type of the base's files; no measurable cost"
    assert dtype_reason([dear, cheap], []).startswith(
        "no measurable cost; bfloat16 would cost +0.0200 of loss"
    )
    passed_over = ["a weight is too large for float16"]
    found = dtype_reason([dear, whole], passed_over)
    assert found.startswith("nothing is rounded; bfloat16 would")
    assert found.endswith("; a weight is too large for float16")


def test_the_figures_of_a_drift_in_words() -> None:
    words = Mismatch(kl=math.log(1.5), top1_agreement=0.77).in_words()
    assert "1.5 times as high" in words and "23.0% of the most likely tokens differ" in words
    assert "trained on weights rounded to 4 bits" in words
    assert Mismatch(0.009, 0.5).passes and not Mismatch(0.011, 1.0).passes
    assert not Mismatch(math.nan, 1.0).passes
