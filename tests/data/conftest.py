from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import BUILDERS, Family, family_named


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a temporary folder, so that files are named relative to it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=list(BUILDERS))
def family(request: pytest.FixtureRequest) -> Family:
    return family_named(request.param)
