"""Adapters without targets, or with missing or extra weights, are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftcli.cli import run
from ftcli.runs.folder import RunFolder
from tests.conftest import pair, save_tiny_model
from tests.tiers import tiers

Observed = Callable[[str], None]
Ask = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Ask:
    """The message of a failing command, with exit code 1 by default."""

    def ask(*words: object, code: int = 1) -> str:
        capsys.readouterr()
        assert run([*map(str, words), "--json"]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return str(json.loads(out)["error"]["message"])

    return ask


# Names that match nothing


@pytest.mark.fault(19)
@pytest.mark.parametrize("mode", ["lora", "qlora"])
def test_each_mistyped_target_is_named_with_the_nearest(
    mode: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    refused: Ask,
    observed: Observed,
) -> None:
    targets = ["q_porj", "v_proj", "up_prjo", "o_proj"]
    recipe = write_recipe(method={"mode": mode, "rank": 4, "target_modules": targets})
    message = refused("train", recipe, code=2)
    assert "'q_porj'; did you mean q_proj?" in message
    assert "'up_prjo'; did you mean up_proj?" in message
    assert "'v_proj'" not in message and "'o_proj'" not in message
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("run.json"))
    observed(f"{mode}: 2 of 4 names refused, each with the nearest")


# Weights


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a run on it."""
    home = tmp_path_factory.mktemp("strange")
    save_tiny_model(home / "base", head_dim=16)
    rows = "".join(json.dumps(pair(number)) + "\n" for number in range(16))
    (home / "rows.jsonl").write_text(rows)
    write(home, "run", "base")
    assert run(["train", str(home / "run.yaml")]) == 0
    return home


def write(home: Path, name: str, base: str) -> Path:
    recipe = {
        "name": name,
        "model": {"id": base},
        "method": {"mode": "lora", "rank": 4},
        "data": {"train": "rows.jsonl", "validation": 4},
        "training": {"max_steps": 2, "batch_size": 4},
        "generation": {"max_new_tokens": 2},
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    folder = Path(shutil.copytree(home, tmp_path / "here"))
    for recipe in folder.rglob("recipe.yaml"):
        recipe.write_text(recipe.read_text().replace(str(home), str(folder)))
    return folder


def lose(tensors: dict[str, Any]) -> None:
    del tensors[sorted(tensors)[0]]


def rename(tensors: dict[str, Any]) -> None:
    name = sorted(tensors)[0]
    tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)


def add(tensors: dict[str, Any]) -> None:
    name = sorted(tensors)[0]
    tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    "change", tiers([lose, rename, add], lose), ids=lambda change: change.__name__
)
def test_an_adapter_with_other_keys_is_refused_by_every_command(
    change: Callable[[dict[str, Any]], None], place: Path, refused: Ask, observed: Observed
) -> None:
    from safetensors.torch import load_file, save_file

    folder = RunFolder(place / "runs" / "run")
    file = folder.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    folder.update_manifest(weights=None)  # its digests would refuse all of these
    commands: tuple[tuple[object, ...], ...] = (
        ("generate", folder.path, "a prompt"),
        ("eval", folder.path),
        ("merge", folder.path),
        ("train", write(place, "further", "base"), "--from", folder.path),
    )
    for command in commands:
        assert "adapter" in refused(*command)
    assert not (folder.path / "merged").exists()
    observed("keys missing, renamed, too many: refused by generate, eval, merge, train --from")
