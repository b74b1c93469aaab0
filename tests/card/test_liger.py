"""Liger's kernels, interpreted on a CPU, against transformers' own layers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from ftcli.memory.architecture import PACKED_TYPES
from tests.tiers import tiers

MISSING = [name for name in ("triton", "liger_kernel") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.card,
    pytest.mark.skipif(bool(MISSING), reason="pip install liger-kernel (brings triton) runs it"),
]


@pytest.mark.parametrize("family", tiers(sorted(PACKED_TYPES), "llama", "gemma2"))
def test_liger_computes_and_saves_what_is_expected(family: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.card.interpreted", family],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(printed.stdout.splitlines()[-1])[family]
    assert found["norms"] > 0
    assert found["loss"] < 1e-6 and found["gradients"] < 1e-5
    assert found["saved"] == pytest.approx(found["estimated"], rel=0.02)
