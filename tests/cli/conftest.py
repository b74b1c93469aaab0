"""Ways to call `ftcli estimate-vram`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import validate

from ftcli.cli import run
from tests.conftest import Capture
from tests.json_shapes import SHAPES


@pytest.fixture
def ask(capsys: Capture) -> Any:
    """The JSON that the command prints, of its shape; stderr stays empty."""

    def estimate(*arguments: str) -> dict[str, Any]:
        assert run(["estimate-vram", *arguments, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.count("\n") == 1
        found: dict[str, Any] = json.loads(out)
        validate(found, SHAPES["estimate-vram"])
        return found

    return estimate


@pytest.fixture
def show(capsys: Capture) -> Any:
    """The text that the command prints; stderr stays empty."""

    def estimate(*arguments: str) -> str:
        assert run(["estimate-vram", *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return estimate


@pytest.fixture
def refuse(capsys: Capture) -> Any:
    """The error of the command, and its exit code."""

    def estimate(*arguments: str) -> tuple[str, int]:
        code = run(["estimate-vram", *arguments])
        out, err = capsys.readouterr()
        assert code != 0 and out == "" and "Traceback" not in err
        return err.rstrip("\n"), code

    return estimate
