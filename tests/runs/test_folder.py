"""Names in a run folder, run.json, and finding a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.errors import FtcliError, MachineError
from ftcli.runs.atomic import write_json
from ftcli.runs.folder import RunFolder, find_run, free_folder, newest_finished, numbered, runs_at


def run_at(path: Path, state: str) -> RunFolder:
    run = RunFolder(path)
    run.update_manifest(state=state)
    return run


def test_the_manifest_keeps_what_is_not_changed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.state is None
    assert run.read_manifest() == {}
    run.update_manifest(state="training", seed=42)
    run.update_manifest(state="finished")
    assert run.read_manifest() == {"state": "finished", "seed": 42}
    assert run.state == "finished"


def test_a_run_without_a_prompt_manifest_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(FtcliError, match=r"has no prompt_manifest.json.*train it again") as caught:
        run.require_prompt_manifest()
    assert caught.value.code == "no_prompt_manifest"
    write_json(run.prompt_manifest, {})
    assert run.require_prompt_manifest() == tmp_path / "run" / "prompt_manifest.json"


@pytest.mark.parametrize("content", [b"{", b"[1]", b"3", b"\xff\xfe", b""])
def test_a_broken_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    run = RunFolder(tmp_path)
    run.manifest.write_bytes(content)
    with pytest.raises(FtcliError, match="the run cannot be read") as caught:
        run.read_manifest()
    assert caught.value.code == "run_broken"
    assert caught.value.file == str(run.manifest)


def test_only_whole_checkpoints_count_in_the_order_of_steps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.steps_saved() == []
    for name in ("step-10", "step-9", "step-100", ".tmp-step-200", "step-x", "best"):
        (run.checkpoints / name).mkdir(parents=True)
    assert run.steps_saved() == [9, 10, 100]
    assert run.checkpoint(9) == tmp_path / "checkpoints" / "step-9"


def test_the_trained_weights_are_an_adapter_or_a_model(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.trained() == tmp_path / "model"
    run.adapter.mkdir()
    assert run.trained() == tmp_path / "adapter"


def test_a_new_training_gets_the_first_free_folder(tmp_path: Path) -> None:
    output = tmp_path / "shop"
    assert free_folder(output).path == output
    (output / "data").mkdir(parents=True)
    assert free_folder(output).path == output
    run_at(output, "finished")
    assert free_folder(output).path == tmp_path / "shop-2"
    run_at(tmp_path / "shop-2", "stopped")
    assert free_folder(output).path == tmp_path / "shop-3"
    (tmp_path / "shop-3").mkdir()
    assert free_folder(output).path == tmp_path / "shop-3"


def test_trainings_are_found_oldest_first_up_to_a_gap(tmp_path: Path) -> None:
    output = tmp_path / "shop"
    assert runs_at(output) == []
    for name in ("shop", "shop-2", "shop-4"):
        run_at(tmp_path / name, "finished")
    (tmp_path / "shop-other").mkdir()
    assert [run.path.name for run in runs_at(output)] == ["shop", "shop-2"]
    assert [path.name for path in numbered(output)] == ["shop", "shop-2"]


def test_the_newest_finished_run_is_taken(tmp_path: Path) -> None:
    output = tmp_path / "shop"
    with pytest.raises(FtcliError) as caught:
        newest_finished(output, "ftcli train shop.yaml")
    assert caught.value.message.endswith("has not been trained; first: ftcli train shop.yaml")
    assert caught.value.exit_code == 1
    run_at(output, "stopped")
    with pytest.raises(FtcliError) as caught:
        newest_finished(output, "ftcli train shop.yaml")
    assert caught.value.message == (
        f"{output}: its run is not finished (stopped); resume: ftcli train {output}"
    )
    run_at(output, "finished")
    run_at(tmp_path / "shop-2", "finished")
    run_at(tmp_path / "shop-3", "training")
    assert newest_finished(output, "ftcli train shop.yaml").path == tmp_path / "shop-2"


def test_a_run_is_a_folder_with_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_run(Path("shop")) is None
    Path("shop").mkdir()
    assert find_run(Path("shop")) is None
    run_at(tmp_path / "shop", "training")
    assert find_run(Path("shop")) == RunFolder(tmp_path / "shop")


def test_a_lock_frees_itself_when_its_block_fails(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(MachineError), run.lock():
        raise MachineError("memory", "out of memory")
    with run.lock():
        pass


def test_asking_for_a_name_touches_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "shop")
    names = [
        getattr(run, name)
        for name, value in vars(RunFolder).items()
        if isinstance(value, property) and name != "state"
    ]
    assert len(names) >= 9
    assert all(path.is_relative_to(run.path) for path in names)
    assert not run.path.exists()
    assert json.dumps(run.read_manifest()) == "{}"
