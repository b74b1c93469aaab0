from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from families import BUILDERS, Family, family_named


@pytest.fixture(params=list(BUILDERS))
def family(request: pytest.FixtureRequest) -> Family:
    return family_named(request.param)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small wait for threads more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
