"""Fault 2, in prepared rows: they are verified before they are trained on again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from ftcli.cli import run
from ftcli.data.dataset import SPLITS, damaged_files, load_dataset
from ftcli.data.tokenizing.arrow_rows import read_split
from tests.commands.test_training import stop_at
from tests.conftest import save_recipe, save_rows
from tests.faults.moments import weights_of

pytestmark = pytest.mark.slow

Observed = Callable[[str], None]


@dataclass(frozen=True)
class Runs:
    """One uninterrupted run, and one that was stopped."""

    home: Path
    stopped: Path
    """Its recipe."""
    whole: str
    """Weights of the undisturbed one."""

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "stopped"

    @property
    def data(self) -> Path:
        return self.folder / "data"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Runs:
    home = tmp_path_factory.mktemp("rows") / "home"
    home.mkdir()
    save_rows(home)
    assert run(["train", str(save_recipe(home, tiny_model, "whole"))]) == 0
    stopped = save_recipe(home, tiny_model, "stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(2, patch)
        assert run(["train", str(stopped)]) == 130
    shutil.copytree(home / "runs", home / "kept")
    return Runs(home, stopped, weights_of(home / "runs" / "whole"))


@pytest.fixture
def runs(made: Runs) -> Runs:
    """Copies at the original path: a run records the paths of its files."""
    shutil.rmtree(made.home / "runs")
    shutil.copytree(made.home / "kept", made.home / "runs")
    return made


def flip(file: Path) -> None:
    """Flip a bit of one token id of the first row: the file stays readable."""
    with file.open("rb") as stream:
        ids = pa.ipc.open_stream(stream).read_all().column("input_ids").chunks[0][0].as_py()
    held = bytearray(file.read_bytes())
    row = b"".join(number.to_bytes(4, "little") for number in ids)
    held[held.index(row) + 4 * (len(ids) // 2)] ^= 1
    file.write_bytes(held)


def remove(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def go_on(runs: Runs, capsys: pytest.CaptureFixture[str]) -> str:
    """Messages of a resume, which ends with the weights of the uninterrupted run."""
    capsys.readouterr()
    said = run(["train", str(runs.stopped)]), capsys.readouterr().err
    assert said[0] == 0, said[1]
    assert weights_of(runs.folder) == runs.whole
    prepared = load_dataset(runs.data)
    assert prepared is not None and not damaged_files(prepared, runs.data)
    assert "resumes at step" in said[1]
    return said[1]


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("damage", "done"), [(flip, "with one bit flipped"), (remove, "deleted"), (cut, "cut")]
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_of_a_stopped_run_are_verified(
    split: str,
    damage: Callable[[Path], None],
    done: str,
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    damage(runs.data / f"{split}.arrow")
    if damage is flip:
        assert read_split(runs.data, "train").num_rows
    lines = [line for line in go_on(runs, capsys).splitlines() if ".arrow" in line]
    assert len(lines) == 1
    assert f"{split}.arrow: " in lines[0] and "the rows are prepared again" in lines[0]
    observed(f"{split} rows {done}: named, prepared again, the same sha256 of the weights")


@pytest.mark.fault(2)
@pytest.mark.parametrize("keys", [["train"], ["stop_ids", "longest"]])
def test_a_record_that_lacks_keys_is_prepared_again(
    keys: list[str], runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs.data / "prepared.json"
    values = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({k: v for k, v in values.items() if k not in keys}), "utf-8")
    assert "prepared.json: cannot be read; the rows are prepared again" in go_on(runs, capsys)
    assert json.loads(file.read_text("utf-8")) == values


def test_rows_without_a_digest_are_not_verified(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs.data / "prepared.json"
    values = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({k: v for k, v in values.items() if k != "digests"}), "utf-8")
    flip(runs.data / "train.arrow")
    assert "has no sha256 of its rows; they are prepared again" in go_on(runs, capsys)
    assert json.loads(file.read_text("utf-8")) == values


def test_other_rows_from_the_same_sources_are_warned_of(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """As another version of a library would write them."""
    file = runs.data / "prepared.json"
    values = json.loads(file.read_text("utf-8"))
    values["digests"]["train"] = "0" * 64
    file.write_text(json.dumps(values), "utf-8")
    said = go_on(runs, capsys)
    assert "the sha256 of the rows differs from before" in said


def test_unchanged_rows_are_used_as_they_are(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [runs.data / f"{split}.arrow" for split in SPLITS]
    before = [file.stat().st_ino for file in files]
    assert "prepared again" not in go_on(runs, capsys)
    assert [file.stat().st_ino for file in files] == before


@pytest.mark.fault(2)
@pytest.mark.parametrize("damage", [flip, remove])
def test_an_evaluation_on_changed_rows_ends(
    damage: Callable[[Path], None],
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    finished, recipe = runs.home / "runs" / "whole", runs.home / "whole.yaml"
    file = finished / "data" / "test.arrow"
    whole = file.read_bytes()
    damage(file)
    capsys.readouterr()
    assert run(["eval", str(finished), "--limit", "2"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"{file}: ")
    assert said[0].endswith(f": ftcli prepare {finished}")
    assert not list(finished.glob("eval*/*.json"))
    assert run(["prepare", str(recipe)]) == 0
    assert file.read_bytes() == whole
    assert run(["eval", str(finished), "--limit", "2"]) == 0
    if damage is flip:
        observed("eval on test rows with one bit flipped: exit 1, the file named")
