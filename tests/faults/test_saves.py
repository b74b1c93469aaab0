"""Checkpoints after a kill in a save, and after damage."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.errors import FtcliError
from ftcli.runs.checkpoints import latest_valid
from ftcli.runs.folder import RunFolder
from tests.conftest import save_recipe, save_rows
from tests.faults.disk_states import Watcher
from tests.faults.moments import weights_of
from tests.tiers import tiers

Observed = Callable[[str], None]
Write = Callable[..., Path]
Method = dict[str, Any]
METHOD: Method = {"mode": "lora", "rank": 4, "dropout": 0.1}
TRAINING = {
    "epochs": 1,
    "batch_size": 4,
    "micro_batch_size": 2,
    "eval_steps": 2,
    "save_steps": 1,
    "save_total_limit": 2,
}


def train(recipe: Path, *flags: str) -> int:
    return run(["train", str(recipe), *flags])


def train_whole(folder: Path, base: Path, method: Method) -> RunFolder:
    """A run that nothing happens to."""
    save_rows(folder)
    assert train(save_recipe(folder, base, "whole", method=method, training=TRAINING)) == 0
    return RunFolder(folder / "runs" / "whole")


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_whole(tmp_path_factory.mktemp("whole"), tiny_model, METHOD)


def watch_saves(monkeypatch: pytest.MonkeyPatch, watchers: dict[int, Watcher]) -> None:
    """Watch the saves of these steps."""
    from ftcli.training.trainer import FtcliTrainer

    original = FtcliTrainer._save_checkpoint

    def save(self: Any, model: Any, trial: Any) -> None:
        if (watcher := watchers.get(self.state.global_step)) is None:
            original(self, model, trial)
            return
        with watcher.watching():
            original(self, model, trial)

    monkeypatch.setattr(FtcliTrainer, "_save_checkpoint", save)


@pytest.mark.fault(1)
@pytest.mark.parametrize(
    "mode",
    tiers(["full", "lora", "qlora"], "lora"),
)
def test_a_kill_at_every_file_operation_of_a_save(
    mode: str,
    whole: RunFolder,
    write_recipe: Write,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    observed: Observed,
) -> None:
    method: Method = {"mode": mode} if mode == "full" else METHOD | {"mode": mode}
    if mode != "lora":
        whole = train_whole(tmp_path, tiny_model, method)
    recipe = write_recipe("killed", method=method, training=TRAINING)
    folder = tmp_path / "runs" / "killed"
    watchers = {step: Watcher(folder, tmp_path / f"after-{step}") for step in (1, 4)}
    with monkeypatch.context() as patch:
        watch_saves(patch, watchers)
        assert train(recipe) == 0
    run_id = RunFolder(folder).read_manifest()["run_id"]
    outcomes: dict[tuple[int, int | None], Path] = {}
    states = 0
    for number, watcher in watchers.items():
        for place, state in enumerate(watcher.all_states()):
            found = latest_valid(RunFolder(state), run_id)
            assert not found.skipped, "half a checkpoint has the name of a whole one"
            step = found.checkpoint.position.step if found.checkpoint else None
            if (number, step) not in outcomes:
                kept = tmp_path / f"outcome-{number}-{step}-{place}"
                outcomes[number, step] = shutil.copytree(state, kept)
            states += 1
    assert set(outcomes) == {(1, None), (1, 1), (4, 3), (4, 4)}
    assert states > 100
    same = 0
    for kept in outcomes.values():
        shutil.copytree(folder / "data", kept / "data")
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        assert train(recipe) == 0
        assert not list(folder.rglob(".tmp-*")), "what the kill left is swept up"
        same += weights_of(folder) == weights_of(whole.path)
    observed(
        f"{mode}: {states} states of two saves lead to {len(outcomes)} outcomes; {same} of "
        f"{len(outcomes)} resumes give the sha256 of the whole run"
    )
    assert same == len(outcomes)


def damages(file: Path) -> Iterator[str]:
    """Damage a file in one way after the other, and restore it after each."""
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    nan = whole[: -len(whole) // 3] + b"\xff" * len(whole[-len(whole) // 3 :])
    for name, content in (("cut", whole[:-2]), ("bit", flipped), ("NaN", nan), ("empty", b"")):
        file.write_bytes(content)
        yield name
    file.unlink()
    yield "deleted"
    file.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.fault(2)
def test_a_damaged_checkpoint_is_skipped(
    whole: RunFolder,
    write_recipe: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    from tests.commands.test_training import stop_at

    recipe = write_recipe("hurt", method=METHOD, training=TRAINING)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        assert train(recipe) == 130
    folder = RunFolder(tmp_path / "runs" / "hurt")
    run_id = folder.read_manifest()["run_id"]
    newest = folder.steps_saved()[-1]
    caught = Counter[str]()
    for file in sorted(folder.checkpoint(newest).iterdir()):
        for damage in damages(file):
            found = latest_valid(folder, run_id)
            assert found.checkpoint is not None and found.checkpoint.position.step < newest
            assert [path for path, _ in found.skipped] == [folder.checkpoint(newest)]
            caught[damage] += 1
    kept = shutil.copytree(folder.path, tmp_path / "kept")
    same = 0
    for damage in ("cut", "bit", "NaN", "empty", "deleted"):
        shutil.rmtree(folder.path)
        shutil.copytree(kept, folder.path)
        file = folder.checkpoint(newest) / "adapter_model.safetensors"
        assert damage in [name for name in damages(file) if name == damage or not file.exists()][:1]
        next(name for name in damages(file) if name == damage)
        capsys.readouterr()
        assert train(recipe) == 0
        said = capsys.readouterr().err
        assert f"step-{newest} is skipped: adapter_model.safetensors" in said
        assert "resumes at step" in said
        same += weights_of(folder.path) == weights_of(whole.path)
    observed(
        f"{caught.total()} damages of {caught['bit']} files all found; {same} of 5 resumes from "
        "the checkpoint before give the sha256 of the whole run"
    )
    assert same == 5


@pytest.mark.fault(2)
def test_without_a_valid_checkpoint_no_run_starts_again(
    write_recipe: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.commands.test_training import stop_at

    recipe = write_recipe(method=METHOD, training=TRAINING)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert train(recipe) == 130
    folder = RunFolder(tmp_path / "runs" / "tiny")
    for step in folder.steps_saved():
        (folder.checkpoint(step) / "optimizer.pt").write_bytes(b"")
    capsys.readouterr()
    assert train(recipe, "--json") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "checkpoint_broken"
    for step in folder.steps_saved():
        assert f"step-{step}: optimizer.pt has 0 bytes" in error["message"]
    shutil.rmtree(folder.checkpoints)
    assert train(recipe, "--json") == 1
    assert "and there is no other" in capsys.readouterr().out


@pytest.mark.fault(4)
def test_a_checkpoint_of_another_run_is_an_error(
    whole: RunFolder,
    write_recipe: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    from tests.commands.test_training import stop_at

    recipe = write_recipe("stopped", method=METHOD, training=TRAINING)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert train(recipe) == 130
    stale = tmp_path / "runs" / "stopped" / "checkpoints" / "step-99"
    shutil.copytree(whole.checkpoint(8), stale)
    capsys.readouterr()
    assert train(recipe, "--json") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "checkpoint_foreign" and str(stale) in error["message"]
    shutil.rmtree(stale)
    assert train(recipe) == 0
    assert weights_of(tmp_path / "runs" / "stopped") == weights_of(whole.path)
    capsys.readouterr()
    assert train(recipe) == 0
    assert "is already finished" in capsys.readouterr().out
    observed("another run's step-99: exit 1, named; without it the same sha256; then: finished")


def test_a_manifest_says_what_is_wrong(whole: RunFolder, tmp_path: Path) -> None:
    """Whatever is done to it, it is no silent new start and no traceback."""
    folder = RunFolder(shutil.copytree(whole.path, tmp_path / "whole"))
    run_id = folder.read_manifest()["run_id"]
    for step in folder.steps_saved()[:-1]:
        shutil.rmtree(folder.checkpoint(step))
    newest = folder.checkpoint(folder.steps_saved()[-1])
    manifest = newest / "manifest.json"
    text = manifest.read_text()
    values = json.loads(text)
    for broken, words in (
        ("", "manifest.json cannot be read"),
        ("[]", "manifest.json cannot be read"),
        (text.replace('"step": 8', '"step": 7'), "was changed after it was written"),
        (json.dumps({"seal": "0"}), "was changed after it was written"),
    ):
        manifest.write_text(broken)
        with pytest.raises(FtcliError, match=words):
            latest_valid(folder, run_id)
    manifest.write_text(text)
    (newest / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FtcliError, match=r"pytorch_model\.bin was added to it"):
        latest_valid(folder, run_id)
    assert values["position"]["step"] == 8 and values["position"]["rows_done"] == 32
