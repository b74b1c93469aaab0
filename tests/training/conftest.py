from __future__ import annotations

import pytest

from tests.families import BUILDERS, Family, family_named


@pytest.fixture(params=list(BUILDERS))
def family(request: pytest.FixtureRequest) -> Family:
    return family_named(request.param)
