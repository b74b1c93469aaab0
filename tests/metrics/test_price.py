"""Time and cost, by values worked out by hand."""

from __future__ import annotations

import pytest

from ftcli.metrics.price import Call, calls_to_pay_back, cost, training_seconds


def call(prompt_tokens: float) -> Call:
    """Reads 1,024 tokens in a second, and writes 50 tokens at 25 in a second."""
    return Call(prompt_tokens, 1024, 50, 25)


def test_a_call_is_its_prompt_and_its_answer() -> None:
    assert call(512).seconds == 0.5 + 2.0


def test_a_training_takes_its_tokens_and_costs_its_hours() -> None:
    assert training_seconds(7_200_000, 2000) == 3600
    assert cost(3600, 0.4) == 0.4
    assert cost(900, 0.4) == pytest.approx(0.1)


def test_the_shorter_prompt_pays_with_the_time_it_saves() -> None:
    # 1,536 tokens less are 1.5 s less: 3,600 s are 2,400 calls, and one more for the rest.
    assert calls_to_pay_back(3600, call(1792), call(256)) == 2400
    assert calls_to_pay_back(3601, call(1792), call(256)) == 2401


def test_what_saves_nothing_never_pays() -> None:
    assert calls_to_pay_back(3600, call(200), call(200)) is None
    assert calls_to_pay_back(3600, call(200), call(1400)) is None
