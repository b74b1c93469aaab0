from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Errors name files as the user would: from the folder where he stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
