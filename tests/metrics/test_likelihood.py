from __future__ import annotations

import math

import pytest

from ftcli.metrics.intervals import ratio_interval
from ftcli.metrics.likelihood import Scored, difference, forgetting

TOKENS = tuple(range(10, 40))
HARDNESS = tuple(token * (1 + token % 7) for token in TOKENS)


def scored(per_token: float) -> Scored:
    """Texts that are hard to very different degrees, and a little more to one model."""
    noise = [0.01 * (token % 3) * token for token in TOKENS]
    losses = [
        hard + per_token * token + extra
        for hard, token, extra in zip(HARDNESS, TOKENS, noise, strict=True)
    ]
    return Scored(tuple(losses), TOKENS)


def test_loss_and_perplexity_are_per_token() -> None:
    two = Scored((2.0, 4.0), (1, 5))
    assert two.loss == 1.0
    assert two.perplexity == pytest.approx(math.e)


def test_pairs_tell_apart_what_intervals_of_each_cannot() -> None:
    first, second = scored(0.0), scored(0.1)
    one, other = (ratio_interval(side.losses, side.tokens) for side in (first, second))
    assert other[0] < one[1], "each alone, they overlap"
    found = difference(first, second)
    assert found.value == pytest.approx(0.1)
    assert found.interval[0] > 0.09


def test_a_model_does_not_differ_from_itself() -> None:
    found = difference(scored(0.0), scored(0.0))
    assert (found.value, *found.interval) == (0.0, 0.0, 0.0)


def test_other_texts_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="different texts"):
        difference(Scored((1.0,), (3,)), Scored((1.0,), (4,)))


def test_forgetting_is_the_ratio_of_the_perplexities() -> None:
    before, after = scored(0.0), scored(math.log(1.2))
    found = forgetting(before, after)
    assert found.change == pytest.approx(after.perplexity / before.perplexity - 1)
    assert found.change == pytest.approx(0.2)
    low, high = found.change_interval
    assert low <= found.change <= high
