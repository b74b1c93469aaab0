"""A command uses the GPU that torch can use, or the CPU if asked for, and says which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ftcli.export.merged_model
import ftcli.training.train  # noqa: F401 - what is heavy looks for a GPU while it is imported
from ftcli.cli import run
from ftcli.errors import MachineError
from ftcli.models import device
from ftcli.models.device import find_hardware, is_out_of_memory
from tests.commands.test_training import stop_at
from tests.out_of_memory import OUT_OF_MEMORY
from tests.tiers import tiers

LISTED = "GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-8f1c)"
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com"
)


@pytest.fixture
def nvidia_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver lists a GPU; torch is the one that is installed here."""
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\n[ "$1" = -L ] && echo "{LISTED}"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("nvidia_gpu")
@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"], ["train", "--smoke-test"]])
def test_a_gpu_that_torch_cannot_use_stops_a_training_before_it_begins(
    command: list[str],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe()
    assert run([*command, str(recipe), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    line = recipe.read_text().splitlines().index("model:") + 1
    assert (error["code"], error["line"]) == ("no_cuda", line)
    assert error["file"].endswith("tiny.yaml") and error["message"].count("model.device") == 2
    assert not (tmp_path / "runs" / "tiny" / "adapter").exists()


@pytest.mark.usefixtures("nvidia_gpu")
@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_the_user_hides_is_left_alone(
    hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MachineError):
        find_hardware("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert find_hardware("auto").kind == "cpu"


@pytest.mark.parametrize("seen", ["proc", "dev", "nothing", "broken driver"])
def test_a_gpu_is_found_by_what_its_driver_leaves(
    seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("proc", "dev", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    if seen in ("proc", "dev"):
        (tmp_path / seen / {"proc": "0000:01:00.0", "dev": "nvidia0"}[seen]).touch()
    if seen == "broken driver":
        (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho GPU access blocked; exit 9\n")
        (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(device, "NVIDIA_GPUS", tmp_path / "proc")
    monkeypatch.setattr(device, "NVIDIA_DEVICES", tmp_path / "dev")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if seen in ("proc", "dev"):
        with pytest.raises(MachineError):
            find_hardware("auto")
    else:
        assert find_hardware("auto").kind == "cpu"


@pytest.mark.usefixtures("nvidia_gpu")
def test_the_reason_is_a_build_without_cuda_or_a_driver_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise RuntimeError(OLD_DRIVER)

    def reason() -> str:
        with pytest.raises(MachineError) as caught:
            find_hardware("auto")
        return str(caught.value)

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    assert "torch 2.13.0+cpu is built without CUDA" in reason()
    assert "pip install --force-reinstall torch==2.13.0)" in reason()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "driver on your system is too old (found version 12020)" in reason()
    assert "CUDA 13.0" in reason() and "CUDA_VISIBLE_DEVICES is 0" in reason()
    assert "http" not in reason()


@pytest.mark.parametrize("mode", tiers(["lora", "qlora"], "lora"))
def test_no_command_touches_the_gpu_with_a_recipe_that_says_cpu(
    mode: str,
    write_recipe: Callable[..., Path],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every call of CUDA fails here, as torch is built without it."""
    if torch.version.cuda is not None:
        pytest.skip("needs a torch that is built without CUDA")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    training: dict[str, Any] = {"max_steps": 4, "batch_size": 4, "eval_steps": 2}
    model = {"id": str(tiny_model), "device": "cpu"}
    recipe = write_recipe(model=model, method={"mode": mode, "rank": 4}, training=training)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert run(["train", str(recipe)]) == 130
    assert f"plan   {find_hardware('cpu').title} · " in capsys.readouterr().err
    for command in (["train"], ["eval", "--limit", "2"], ["merge"], ["prepare", "--try-prompting"]):
        assert run([command[0], str(recipe), *command[1:]]) == 0, command
    assert run(["generate", str(recipe), "Product: kettle"]) == 0
    assert not [record for record in caplog.records if "RNG" in record.getMessage()]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_no_memory_is_known_whoever_says_so(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        # A kernel that wants more of a multiprocessor than it has: fewer rows would not help.
        RuntimeError("No valid triton configs. OutOfMemoryError: out of resource: triton_tem"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("CUDA error: out of memory"),
    ],
    ids=str,
)
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
