"""What a training measured, and the estimate against it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from ftcli.cli import run
from ftcli.cli.estimate_view import calibration_lines
from ftcli.errors import FtcliError
from ftcli.memory import Choices, estimate
from ftcli.models.architectures.find import find_architecture
from ftcli.runs.atomic import write_json
from ftcli.runs.folder import RunFolder
from ftcli.training.estimate.calibrate import calibrate_runs
from ftcli.training.run_record import MEASUREMENTS, MemoryRecord
from tests import json_shapes as kinds
from tests.conftest import save_recipe, save_rows
from tests.tiers import tiers

FIGURE = kinds.record(
    {
        "measure": {"enum": ["allocated", "reserved", "resident"]},
        **dict.fromkeys(("estimated_bytes", "measured_bytes"), kinds.COUNT),
        **dict.fromkeys(("low_bytes", "high_bytes"), kinds.COUNT),
        "error": kinds.NUMBER,
        "inside": {"type": "boolean"},
    }
)
CALIBRATED = kinds.record(
    {
        **dict.fromkeys(("run_dir", "model", "mode", "machine"), kinds.TEXT),
        "figures": {"type": "array", "items": FIGURE, "minItems": 1},
    }
)
CALIBRATION = kinds.record(
    {
        "runs": {"type": "array", "items": CALIBRATED, "minItems": 1},
        **dict.fromkeys(("figures", "inside"), kinds.COUNT),
        "median_error": kinds.NUMBER,
    }
)

ARCHITECTURE = find_architecture("qwen2.5-7b")
CHOICES = Choices(mode="qlora", seq_len=2048, target_modules=("q_proj", "v_proj"))
FOUND = estimate(ARCHITECTURE, CHOICES)


def record(**changes: Any) -> MemoryRecord:
    """A record of QLoRA on a card that took just what was estimated."""
    values: dict[str, Any] = {
        "device": "cuda",
        "estimated_bytes": FOUND.peak_bytes,
        "low_bytes": FOUND.peak_bytes,
        "high_bytes": FOUND.peak_bytes,
        "estimated_reserved_bytes": FOUND.reserved_bytes,
        "allocated_bytes": FOUND.peak_bytes,
        "reserved_bytes": FOUND.reserved_bytes,
        "resident_bytes": None,
        "validation_bytes": None,
        "model": "qwen2.5-7b",
        "choices": CHOICES,
    }
    return MemoryRecord(**values | changes)


def write_run(path: Path, **memory: Any) -> Path:
    manifest = {"state": "finished", "hardware": {"name": "NVIDIA A100"}, **memory}
    write_json(RunFolder(path).manifest, manifest)
    return path


def test_a_record_reads_back_as_it_was() -> None:
    plain = json.loads(json.dumps(record().model_dump(mode="json")))
    assert MemoryRecord.of(plain, Path("run.json")) == record()


def test_a_record_of_another_version_is_refused_by_name() -> None:
    plain = record().model_dump(mode="json")
    plain["choices"]["optimizer"] = "muon"
    with pytest.raises(FtcliError, match=r"choices\.optimizer: .*train again"):
        MemoryRecord.of(plain, Path("run.json"))


def test_a_resumed_run_keeps_the_greater_of_each_figure() -> None:
    first = record(allocated_bytes=5, reserved_bytes=9, validation_bytes=3)
    second = record(allocated_bytes=7, reserved_bytes=8)
    plain = first.model_dump(mode="json")
    kept = second.maximum(plain)
    assert [getattr(kept, name) for name in MEASUREMENTS] == [7, 9, None, 3]
    unmeasured = record(allocated_bytes=None, reserved_bytes=None)
    assert unmeasured.maximum(plain) == first
    assert second.maximum({}) == second
    assert second.maximum(plain | {"device": "cpu"}) == second


def test_estimate_and_measurement_side_by_side(tmp_path: Path) -> None:
    exact = write_run(tmp_path / "exact", memory=record().model_dump(mode="json"))
    more = record(allocated_bytes=2 * FOUND.peak_bytes, reserved_bytes=None)
    found = calibrate_runs(
        [exact, write_run(tmp_path / "more", memory=more.model_dump(mode="json"))]
    )
    assert [figure.measure for figure in found.figures] == ["allocated", "reserved", "allocated"]
    assert [figure.error for figure in found.figures] == [0, 0, -0.5]
    assert [figure.inside for figure in found.figures] == [True, True, False]
    assert found.median_error == 0 and found.inside == 2
    lines = calibration_lines(found)
    what = (
        "qwen2.5-7b · QLoRA r=16 · bf16 · 1 × 2048 tokens · gradient checkpointing on · NVIDIA A100"
    )
    assert what in " ".join(line.strip() for line in lines)
    assert "50.0% too low · outside" in lines[-2]
    assert lines[-1] == "median error 0.0% of 3 figures, 2 inside the interval"


def test_folders_without_a_measurement_are_refused(tmp_path: Path) -> None:
    nothing = record(allocated_bytes=None, reserved_bytes=None)
    cases = {
        "run_missing": tmp_path,
        "run_unmeasured": write_run(tmp_path / "old"),
        "run_broken": write_run(tmp_path / "broken", memory={"device": "cuda"}),
    }
    for code, path in cases.items():
        with pytest.raises(FtcliError) as error:
            calibrate_runs([path])
        assert error.value.code == code
    with pytest.raises(FtcliError, match="no step was taken"):
        calibrate_runs([write_run(tmp_path / "none", memory=nothing.model_dump(mode="json"))])


def train_alone(recipe: Path) -> None:
    """In a process of its own: one that has trained before uses the memory it has freed again, and
    a tiny model may take nothing new of the machine's."""
    command = [sys.executable, "-m", "ftcli", "train", str(recipe)]
    done = subprocess.run(command, cwd=recipe.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The recipe of a mode, trained once."""
    folder = tmp_path_factory.mktemp("trained")
    save_rows(folder)

    @cache
    def by_mode(mode: str) -> Path:
        training = {"max_steps": 2, "batch_size": 4, "eval_steps": 1}
        recipe = save_recipe(folder, tiny_model, mode, method={"mode": mode}, training=training)
        train_alone(recipe)
        return recipe

    return by_mode


@pytest.mark.parametrize("mode", tiers(["full", "lora", "qlora"], "lora"))
def test_a_training_records_what_it_took(mode: str, trained: Callable[[str], Path]) -> None:
    folder = RunFolder(trained(mode).parent / "runs" / mode)
    manifest = folder.read_manifest()
    found = MemoryRecord.of(manifest["memory"], folder.manifest)
    planned = json.loads(folder.plan.read_text())["estimate"]
    assert found.estimated_bytes == planned["peak_bytes"]
    assert (
        estimate(find_architecture(found.model), found.choices).peak_bytes == found.estimated_bytes
    )
    assert found.low_bytes < found.estimated_bytes < found.high_bytes
    measured = found.resident_bytes if found.device == "cpu" else found.allocated_bytes
    assert measured is not None
    assert 0 < measured <= manifest["result"]["peak_memory_bytes"]


def test_calibrate_prints_lines_or_one_object(
    trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = trained("lora")
    folder = str(recipe.parent / "runs" / "lora")
    twice = ["estimate-vram", "--calibrate", folder, "--calibrate", str(recipe)]
    assert run(twice) == 0
    assert "median error" in capsys.readouterr().out
    assert run([*twice, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    validate(value, CALIBRATION)
    assert [each["run_dir"] for each in value["runs"]] == [folder, folder]
    assert value["figures"] == len(value["runs"][0]["figures"]) * 2
    for other in ([str(recipe)], ["--model", "7b"], ["--max-length", "8"], ["--fit", "24GB"]):
        assert run(["estimate-vram", "--calibrate", folder, *other]) == 2
        assert "compares recorded runs with their estimates" in capsys.readouterr().err
    assert run(["estimate-vram", "--calibrate", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "run_missing"
