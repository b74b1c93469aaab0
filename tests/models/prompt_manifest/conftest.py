"""A trained LoRA run and a full run, and a command line to open them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.conftest import pair
from tests.models.prompt_manifest.manifest_runs import (
    WITH_DEFAULT,
    Ask,
    set_template,
    write_recipe,
)


@pytest.fixture(scope="session")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, its LoRA run, and a full run on the same rows."""
    folder = tmp_path_factory.mktemp("trained")
    base = Path(shutil.copytree(tiny_model, folder / "base"))
    set_template(base, WITH_DEFAULT)
    (folder / "rows.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(24)))
    for mode in ("lora", "full"):
        write_recipe(folder, mode)
        assert run(["train", str(folder / f"{mode}.yaml")]) == 0
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder that a test may change."""
    folder = Path(shutil.copytree(trained, tmp_path / "here"))
    for recipe in folder.rglob("recipe.yaml"):
        recipe.write_text(recipe.read_text().replace(str(trained), str(folder)))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def command(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = run([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out)["error"]["message"] if code else out

    return command
