"""Several comparisons at once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.metrics.many import LEVEL, REACH, holm, p_value

SHARES = st.lists(st.floats(0, 1), max_size=12)


def test_the_example_of_a_textbook() -> None:
    """0.01 ≤ 0.05/4, 0.005 ≤ 0.05/3 …: the third of the order is not small enough, nor is any
    behind it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == (True, False, False, True)
    assert holm([0.04]) == (True,) and holm([0.04, 0.04]) == (False, False)
    assert holm([0.02, 0.04]) == (True, True) and holm([]) == ()


@given(SHARES)
def test_between_bonferroni_and_each_alone(p_values: list[float]) -> None:
    shown = holm(p_values)
    for p, holds in zip(p_values, shown, strict=True):
        assert (p <= LEVEL / len(p_values)) <= holds <= (p <= LEVEL)
    most = max((p for p, holds in zip(p_values, shown, strict=True) if holds), default=-1.0)
    assert all(holds for p, holds in zip(p_values, shown, strict=True) if p < most)


@pytest.mark.parametrize(("z", "p"), [(1.959964, 0.05), (2.575829, 0.01), (3.290527, 0.001)])
@pytest.mark.parametrize("sign", [1, -1])
def test_p_of_a_difference_so_many_standard_errors_from_zero(z: float, p: float, sign: int) -> None:
    """The quantiles of any table of the normal distribution."""
    error = 0.3
    near, far = sign * (z - REACH) * error, sign * (z + 3 * REACH) * error
    low, high = min(near, far), max(near, far)
    assert p_value(sign * z * error, (low, high)) == pytest.approx(p, rel=1e-4)


def test_p_where_an_interval_has_no_width_or_no_end() -> None:
    assert p_value(0.5, (0.5, 0.5)) == 0 and p_value(0.0, (0.0, 0.0)) == 1
    assert p_value(0.5, (-math.inf, 0.6)) == 1 and p_value(0.5, (math.nan, 0.6)) == 1
    assert p_value(0.5, (0.6, 0.8)) < LEVEL  # resampling has left the difference itself out
