"""`ftcli merge`: what is wrong is refused or caught, with nothing left on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ftcli.cli import run
from ftcli.runs.folder import RunFolder
from tests.merged import Merge, digests, left_below


@pytest.mark.fault(8, 9)
def test_an_update_lost_in_part_is_caught(
    merge: Merge, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    whole = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda *a: whole(*a) * 0.999)
    output = tmp_path / "new" / "folder" / "one"
    error = merge(lora, "--output", output, "--dtype", "bf16", code=1)["error"]
    assert error["code"] == "merge_differs"
    assert "largest logit difference " in error["message"] and "(at most " in error["message"]
    assert left_below(tmp_path) == []


@pytest.mark.fault(8)
def test_4_bit_weights_rounded_otherwise_are_caught(
    merge: Merge, qlora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference is as large as that of the original base."""
    from ftcli.export import merged_model

    monkeypatch.setattr(merged_model, "NF4_BLOCK", 256)
    error = merge(qlora, "--output", tmp_path / "one", code=1)["error"]
    assert "KL" in error["message"]
    assert left_below(tmp_path) == []


def test_a_model_with_nan_weights_is_caught(
    merge: Merge, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.export import merged_model as engine

    def broken(*arguments: Any) -> Any:
        model = original(*arguments)
        model.model.norm.weight.data[0] = float("nan")
        return model

    original = engine.merge_adapter
    monkeypatch.setattr(engine, "merge_adapter", broken)
    message = merge(lora, "--output", tmp_path / "one", code=1)["error"]["message"]
    assert "nan" in message and "is not what was measured before it was written" in message
    assert left_below(tmp_path) == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that starts a program in the background has it ignore Ctrl-C."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("phase", "number"),
    [("merged", signal.SIGINT), ("write", signal.SIGTERM), ("read_back", signal.SIGTERM)],
)
def test_a_stopped_merge_leaves_nothing(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, number: signal.Signals
) -> None:
    from ftcli.export import merged_model as engine

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return original(*arguments)

    original = getattr(engine.Merger, phase)
    monkeypatch.setattr(engine.Merger, phase, stopped)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert run(["merge", str(lora), "--output", str(tmp_path / "new" / "one")]) == 128 + number
    assert left_below(tmp_path) == []
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("phase", ["measure_trained", "merged"])
def test_a_gpu_without_room_leaves_the_merge_to_the_cpu(
    merge: Merge, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Its memory is full when the trained model is measured, or while weights are merged."""
    from ftcli.export.merged_model import Merger
    from ftcli.models import device

    gpu = replace(device.find_hardware("cpu"), kind="cuda")
    monkeypatch.setattr(device, "hardware_for", lambda _: gpu)
    devices: list[str] = []

    def full_at_first(merger: Any, *arguments: Any) -> Any:
        devices.append(merger._opened.recipe.model.device)
        if len(devices) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return original(merger, *arguments)

    original = getattr(Merger, phase)
    monkeypatch.setattr(Merger, phase, full_at_first)
    report = merge(lora, "--output", tmp_path / "one")
    assert devices[:2] == ["auto", "cpu"] and "auto" not in devices[1:]
    assert report["verdict"] == "pass"
    assert "the GPU has no room for this merge: it begins again on the CPU" in report["stderr"]


def test_a_folder_filled_in_the_meantime_is_kept(
    merge: Merge, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.export import merged_model as engine

    def filled(*arguments: Any) -> Any:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "thesis.txt").write_text("mine")
        return original(*arguments)

    original = engine.Merger.read_back
    monkeypatch.setattr(engine.Merger, "read_back", filled)
    assert merge(lora, "--output", tmp_path / "one", code=1)["error"]["code"] == "output_taken"
    assert left_below(tmp_path) == ["one", "one/thesis.txt"]


# Refused before any work


@pytest.mark.fault(34)
def test_a_merge_touches_neither_base_nor_run(merge: Merge, merge_home: Path, lora: Path) -> None:
    (merge_home / "link").symlink_to(merge_home / "base")
    before = digests(merge_home)
    for where, words in (
        ("base", "base is in the base"),
        ("base/merged", "merged is in the base"),
        ("runs/../base/merged", "merged is in the base"),
        ("link/merged", "merged is in the base"),
        ("runs/lora", "lora is the run itself"),
        ("runs/lora/adapter/merged", "merged is in the run's adapter"),
        ("runs/lora/checkpoints/step-9", "step-9 is in the run's checkpoints"),
        ("runs/qlora", "qlora exists and is not overwritten"),
        ("lora.yaml", "lora.yaml exists and is not overwritten"),
    ):
        error = merge(lora, "--output", f"{merge_home}/{where}", code=1)["error"]
        assert error["code"] == "output_taken" and words in error["message"]
    assert digests(merge_home) == before


def test_a_lora_run_has_one_base_only(merge: Merge, lora: Path) -> None:
    error = merge(lora, "--base", "original", code=2)["error"]
    assert "only a QLoRA run was trained on a quantised base" in error["message"]


def test_methods_that_cannot_be_merged(merge: Merge, lora: Path, tmp_path: Path) -> None:
    copied = RunFolder(shutil.copytree(lora, tmp_path / "run"))
    recipe = yaml.safe_load(copied.recipe.read_text())
    for mode, words in (
        ("bottleneck", "its network is not linear"),
        ("prefix-tuning", "its virtual tokens precede the input"),
        ("prompt-tuning", "its virtual tokens precede the input"),
    ):
        copied.recipe.write_text(yaml.safe_dump(recipe | {"method": {"mode": mode}}))
        message = merge(copied.path, code=2)["error"]["message"]
        assert message.startswith(f"method.mode: {mode} cannot be merged: ")
        assert words in message and "ftcli generate" in message and message.endswith("train lora")


@pytest.mark.fault(8)
def test_a_base_whose_files_are_quantised_is_refused(
    merge: Merge, merge_home: Path, lora: Path, tmp_path: Path
) -> None:
    config = merge_home / "base" / "config.json"
    before = config.read_text()
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    try:
        config.write_text(json.dumps(json.loads(before) | quantised))
        error = merge(lora, "--output", tmp_path / "one", code=1)["error"]
    finally:
        config.write_text(before)
    assert error["code"] == "merge_quantized" and "would be rounded away" in error["message"]
    assert left_below(tmp_path) == []
