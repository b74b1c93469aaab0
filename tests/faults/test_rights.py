"""Files are as readable as the umask says, and a base is never written to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftcli.cli import run
from ftcli.runs.atomic import sha256_file

Observed = Callable[[str], None]


@pytest.fixture
def umask_022() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def rights_below(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mode & 0o777 for p in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.fault(34)
@pytest.mark.usefixtures("umask_022")
@pytest.mark.parametrize("mode", ["lora", "full", "prefix-tuning"])
def test_every_file_of_a_run_is_readable_by_all(
    mode: str, write_recipe: Callable[..., Path], tmp_path: Path, observed: Observed
) -> None:
    method = {"mode": mode} | ({"rank": 4} if mode == "lora" else {})
    recipe = write_recipe(method=method, training={"max_steps": 2, "batch_size": 4})
    folder = tmp_path / "runs" / "tiny"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "mug"}) + "\n")
    answers = folder / "answers.jsonl"
    assert run(["train", str(recipe)]) == 0
    assert run(["eval", str(recipe)]) == 0
    assert run(["generate", str(recipe), "--input", str(prompts), "--output", str(answers)]) == 0
    if mode == "lora":
        assert run(["merge", str(recipe)]) == 0
    rights = rights_below(folder)
    files = {name for name in rights if (folder / name).is_file()}
    assert {rights[name] for name in files} == {0o644}
    assert {rights[name] for name in rights.keys() - files} == {0o755}
    assert any("checkpoints/" in name for name in files) and "answers.jsonl" in rights
    observed(f"{mode}: {len(files)} files, all 0644, folders 0755")


# The base


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """The model in a folder of the recipe's, as `models/base/model`."""
    return Path(shutil.copytree(tiny_model, tmp_path / "models" / "base" / "model"))


@pytest.mark.fault(34)
@pytest.mark.parametrize("command", ["prepare", "train --dry-run", "train"])
@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("models/base/model", "is the base"),
        ("models/base/model/run", "is inside the base"),
        ("models/../link/run", "is inside the base"),
        ("models/base", "contains the base"),
        (".", "contains the base"),
    ],
)
def test_a_run_folder_is_never_the_bases(
    output: str,
    named: str,
    command: str,
    base: Path,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    (tmp_path / "link").symlink_to(base)
    recipe = write_recipe(model={"id": "models/base/model"}, method={"mode": "full"}, output=output)
    before = digests(tmp_path)
    assert run([*command.split(), str(recipe)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{recipe.name}:") and "output: " in error and named in error
    assert "Traceback" not in error
    assert digests(tmp_path) == before
    observed("output that is, holds or lies in the base's folder: exit 1, nothing written")


@pytest.mark.slow
@pytest.mark.fault(34)
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_training_next_to_its_base_leaves_it_unchanged(
    mode: str, base: Path, write_recipe: Callable[..., Path], observed: Observed
) -> None:
    before = digests(base)
    for file in base.rglob("*"):
        file.chmod(0o444)
    recipe = write_recipe(
        model={"id": "models/base/model"},
        method={"mode": mode},
        training={"max_steps": 2, "batch_size": 4},
        output="models/base/run",
    )
    for words in (["train"], ["eval"], ["merge"]):
        assert run([words[0], str(recipe)]) == 0
    assert digests(base) == before
    observed(f"{mode}: every byte of the base as before")


@pytest.mark.fault(34)
def test_a_run_never_writes_into_the_model_it_starts_from(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"max_steps": 1, "batch_size": 4}
    assert run(["train", str(write_recipe("whole", method={"mode": "full"}, training=short))]) == 0
    whole = tmp_path / "runs" / "whole"
    further = write_recipe("further", training=short, output="runs/whole/model/further")
    before = digests(whole)
    capsys.readouterr()
    assert run(["train", str(further), "--from", str(whole)]) == 1
    assert "further.yaml:" in (error := capsys.readouterr().err)
    assert "output: " in error and "is inside the base" in error
    assert digests(whole) == before
