"""Parameters of a test in two tiers: what `make test` runs, and what only `make test-all` adds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest


def tiers(every: Collection[Any], *quick: Any) -> list[Any]:
    """All parameters; those not named as quick are marked `slow`."""
    assert all(each in every for each in quick)
    return [
        each
        if each in quick
        else pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.slow)
        for each in every
    ]
