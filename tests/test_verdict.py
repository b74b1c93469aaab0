from __future__ import annotations

import math
from typing import Any

import pytest

from ftcli.stages.verdict import DRIFT, FAIL, PASS, drift_in_words, limits_for, verdict_of


def report(**changes: float) -> dict[str, Any]:
    figures = {"kl": 1e-4, "top1_agreement": 0.985, "agreement_with_ties": 0.995}
    return figures | {"max_logit_difference": 0.2} | changes


@pytest.mark.parametrize(
    ("quantised", "onto", "dtype", "limits"),
    [
        (False, "dequantized", "float32", {"max_logit_difference": 1e-4}),
        (False, "dequantized", "bfloat16", {"kl": 1e-2, "agreement_with_ties": 0.99}),
        (False, "dequantized", "float16", {"kl": 1e-2, "agreement_with_ties": 0.99}),
        (True, "dequantized", "float32", {"kl": 1e-2, "agreement_with_ties": 0.99}),
        (True, "dequantized", "bfloat16", {"kl": 1e-2, "agreement_with_ties": 0.99}),
        (True, "original", "float32", {"kl": 1e-2}),
        (True, "original", "bfloat16", {"kl": 1e-2}),
    ],
)
def test_what_a_merge_may_change(
    quantised: bool, onto: str, dtype: str, limits: dict[str, float]
) -> None:
    assert limits_for(quantised=quantised, onto=onto, dtype=dtype).as_json() == limits


@pytest.mark.parametrize(
    ("dtype", "changes", "words"),
    [
        ("bfloat16", {"kl": 1e-2, "agreement_with_ties": 0.99}, []),
        ("bfloat16", {"kl": 0.011}, ["KL 0.011 (at most 0.01)"]),
        (
            "bfloat16",
            {"agreement_with_ties": 0.98},
            ["top-1 agreement with near ties 98.00% (at least 99%)"],
        ),
        ("bfloat16", {"max_logit_difference": 9.0}, []),
        ("float32", {"max_logit_difference": 1e-4, "kl": 1.0}, []),
        (
            "float32",
            {"max_logit_difference": 1.2e-4},
            ["largest logit difference 0.00012 (at most 0.0001)"],
        ),
        ("float32", {"max_logit_difference": math.nan}, ["largest logit difference nan"]),
        ("bfloat16", {"kl": math.nan}, ["KL nan"]),
    ],
)
def test_each_figure_beyond_its_limit_is_named(
    dtype: str, changes: dict[str, float], words: list[str]
) -> None:
    limits = limits_for(quantised=False, onto="dequantized", dtype=dtype)
    found = limits.exceeded(report(**changes))
    assert len(found) == len(words)
    assert all(text.startswith(word) for text, word in zip(found, words, strict=True))
    assert verdict_of(report(**changes), limits, accept_drift=False) == (FAIL if words else PASS)


@pytest.mark.parametrize(
    ("kl", "accept", "verdict"),
    [
        (0.009, False, PASS),
        (0.009, True, PASS),
        (0.33, False, FAIL),
        (0.33, True, DRIFT),
        (math.nan, True, FAIL),
        (math.inf, True, FAIL),
    ],
)
def test_a_drift_may_be_accepted_but_no_broken_model(kl: float, accept: bool, verdict: str) -> None:
    limits = limits_for(quantised=True, onto="original", dtype="float32")
    assert verdict_of(report(kl=kl), limits, accept_drift=accept) == verdict


def test_the_figures_of_a_drift_in_words() -> None:
    words = drift_in_words(report(kl=math.log(1.5), top1_agreement=0.77))
    assert "1.5 times as perplexing" in words and "at 23.0% of the tokens" in words
    assert "trained on weights rounded to 4 bits" in words
