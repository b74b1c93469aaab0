"""Runs to merge, and commands with what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from ftcli.cli import run
from tests.conftest import save_tiny_model
from tests.json_shapes import SHAPES
from tests.merged import Merge, recipe_of


@pytest.fixture(scope="session")
def merge_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rows, and a LoRA and a QLoRA run that have learned them in part."""
    home = tmp_path_factory.mktemp("merging")
    save_tiny_model(home / "base", head_dim=16, initializer_range=0.2)
    for mode in ("lora", "qlora"):
        assert run(["train", str(recipe_of(home, mode))]) == 0
    return home


@pytest.fixture
def lora(merge_home: Path) -> Path:
    return merge_home / "runs" / "lora"


@pytest.fixture
def qlora(merge_home: Path) -> Path:
    return merge_home / "runs" / "qlora"


@pytest.fixture
def merge(capsys: pytest.CaptureFixture[str]) -> Merge:
    """Run `ftcli merge --json`; its object, with what it prints on stderr as `stderr`."""

    def merge(*arguments: object, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert run(["merge", *map(str, arguments), "--json"]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        value: dict[str, Any] = json.loads(out)
        validate(value, SHAPES["error" if code else "merge"])
        return {**value, "stderr": err}

    return merge


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs `prepare --json` and gives what it prints."""

    def prepare(recipe: Path, *flags: str) -> dict[str, Any]:
        assert run(["prepare", str(recipe), *flags, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return prepare
