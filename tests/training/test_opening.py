"""What is said of a path that leads to no run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftcli.errors import FtcliError
from ftcli.runs.atomic import write_json
from ftcli.runs.folder import RunFolder
from ftcli.training import opening
from ftcli.training.opening import require_unchanged_weights, run_at, weight_digests
from tests.conftest import Patch


def reason(path: Path) -> str:
    with pytest.raises(FtcliError) as caught:
        run_at(path)
    assert caught.value.code == "run_missing"
    return caught.value.message


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("adapter", "the adapter"),
        ("model", "the trained model"),
        ("merged", "the merged model"),
        ("checkpoints/step-4", "a checkpoint"),
        ("data", "a part"),
    ],
)
def test_a_part_of_a_run_names_the_run(
    tmp_path: Path, monkeypatch: Patch, part: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "runs" / "shop")
    write_json(run.manifest, {"state": "finished"})
    folder = Path("runs/shop", part)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    said = f"runs/shop/{part} is {what} of the run runs/shop; name the run itself: runs/shop"
    assert reason(folder) == said
    monkeypatch.chdir(folder)
    assert reason(Path()).startswith(f". is {what} of the run ")
    assert run_at(run.path) == run


def test_a_model_is_not_a_run(tmp_path: Path) -> None:
    """As `ftcli generate models/base` would have it."""
    folder = tmp_path / "models" / "base"
    folder.mkdir(parents=True)
    for file, what in (
        (None, "not a run: it has no run.json"),
        ("adapter_config.json", "an adapter, not a run: it has adapter_config.json and no"),
        ("config.json", "a model, not a run: it has config.json and no run.json"),
    ):
        if file is not None:
            (folder / file).write_text("{}")
        message = reason(folder)
        assert what in message and message.startswith(f"{folder} is ")
        assert message.endswith("; name the run folder of ftcli train, or its recipe")


def finished(run: RunFolder, folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    run.update_manifest(state="finished", **weight_digests(folder))


def changed(run: RunFolder) -> FtcliError:
    with pytest.raises(FtcliError) as caught:
        require_unchanged_weights(run)
    assert caught.value.code == "weights_changed" and caught.value.exit_code == 1
    return caught.value


def test_a_whole_model_is_read_only_where_size_or_date_is_another(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    run, read = RunFolder(tmp_path / "shop"), list[str]()
    finished(run, run.model, ["model-1.safetensors", "model-2.safetensors"])
    original = opening.sha256_file

    def counted(file: Path) -> str:
        read.append(file.name)
        return original(file)

    monkeypatch.setattr(opening, "sha256_file", counted)
    require_unchanged_weights(run)
    assert read == []
    file = run.model / "model-2.safetensors"
    os.utime(file, ns=(1, 1))
    require_unchanged_weights(run)
    require_unchanged_weights(run)
    assert read == ["model-2.safetensors"], "once by each command"
    file.write_bytes(file.read_bytes()[:-1])
    assert changed(run).file == str(file)


def test_an_adapter_is_read_whatever_its_date(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "shop")
    finished(run, run.adapter, ["adapter_model.safetensors"])
    file = run.adapter / "adapter_model.safetensors"
    date = file.stat().st_mtime_ns
    file.write_bytes(b"x" * file.stat().st_size)
    os.utime(file, ns=(date, date))
    assert changed(run).file == str(file)
    file.unlink()
    assert changed(run).message.startswith("is gone; restore the trained weights")


def test_a_file_that_would_be_loaded_before_the_trained_ones_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "shop")
    finished(run, run.model, ["model-1.safetensors", "model-2.safetensors"])
    (run.model / "model.safetensors").touch()
    assert changed(run).message.startswith("is loaded, and the training did not write it; ")


def test_a_manifest_whose_weights_are_no_object_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "shop")
    write_json(run.manifest, {"state": "finished", "weights": ["a"]})
    with pytest.raises(FtcliError, match="restore it") as caught:
        require_unchanged_weights(run)
    assert caught.value.code == "run_broken" and caught.value.file == str(run.manifest)


def test_neither_run_nor_recipe(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(RunFolder(tmp_path / "runs" / "shop").manifest, {"state": "finished"})
    (tmp_path / "shop.yaml").write_text("")
    said = "no run and no recipe of this name"
    assert reason(Path("runs/nosuch")) == said
    assert reason(Path("nowhere/nosuch")) == said
    assert reason(Path("x" * 300)) == said
    assert reason(Path("runs/shpo")) == f"{said}; did you mean shop?"
    assert reason(Path("shpo.yaml")) == f"{said}; did you mean shop.yaml?"


def test_the_command_that_makes_the_run_is_whole(tmp_path: Path, monkeypatch: Patch) -> None:
    from tests.config.shop import SHOP

    monkeypatch.chdir(tmp_path)
    Path("my shop.yaml").write_text(SHOP)
    assert reason(Path("my shop.yaml")).endswith(
        "has not been trained; first: ftcli train 'my shop.yaml'"
    )
    with pytest.raises(FtcliError) as caught:
        run_at(Path("my shop.yaml"), ["output=runs/b c"])
    assert caught.value.message.endswith("ftcli train 'my shop.yaml' --set 'output=runs/b c'")
