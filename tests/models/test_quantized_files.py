"""Checkpoints in MXFP4 and FP8 are trained in 16 or in 4 bits, and saved in 16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftcli.cli import run
from ftcli.config.recipe import Model, Qlora
from ftcli.errors import ModelError
from ftcli.export.merged_model import STORED_TYPES
from ftcli.models.architectures.model_class import model_class, open_config
from ftcli.models.files.quantized_files import dequantised_note
from ftcli.models.load import load_base
from ftcli.models.methods import attach, quantization
from tests.conftest import save_tiny_model
from tests.merged import recipe_of
from tests.tiny_models import lora

# OCP Microscaling Formats 1.0, table 5: the values of FP4 (E2M1) by their code.
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}


def load(folder: Path, **more: Any) -> Any:
    return load_base(
        str(folder),
        Model(id=str(folder)),
        dtype=torch.bfloat16,
        attention="eager",
        device=torch.device("cpu"),
        **more,
    )


def quantised(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """The same folder with these tensors and this quantization_config."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": config}))
    return folder


def save_mxfp4(folder: Path) -> dict[str, Tensor]:
    """A GPT-OSS whose experts are in MXFP4, as its files have them; returns its experts."""
    save_tiny_model(folder, "gpt_oss", **EXPERTS)
    tensors, expected = load_file(folder / "model.safetensors"), {}
    for name in [each for each in tensors if each.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(116, 122, (experts, outputs, inputs // 32), dtype=torch.uint8)
        codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2).long()
        values = FP4[codes] * torch.exp2(scales.float() - 127)[..., None]
        expected[name] = values.flatten(-2).transpose(1, 2)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    quantised(folder, tensors, quant_method="mxfp4", modules_to_not_convert=["lm_head"])
    return expected


def save_fp8(folder: Path) -> dict[str, Tensor]:
    """A Llama whose layers are in FP8 with a scale for 32 × 32 weights; returns its layers."""
    save_tiny_model(folder, "llama")
    tensors, expected = load_file(folder / "model.safetensors"), {}
    for name in [each for each in tensors if each.endswith("_proj.weight")]:
        coarse = (tensors[name].float() * 100).to(torch.float8_e4m3fn)
        scales = torch.rand([size // 32 for size in coarse.shape]) / 100
        whole = scales.repeat_interleave(32, 0).repeat_interleave(32, 1)
        expected[name] = coarse.float() * whole
        tensors |= {name: coarse, f"{name}_scale_inv": scales}
    quantised(folder, tensors, quant_method="fp8", weight_block_size=[32, 32])
    return expected


SAVED = {"mxfp4": save_mxfp4, "fp8": save_fp8}


@pytest.mark.parametrize("kind", SAVED)
def test_files_are_dequantised_and_saved_in_16_bits(kind: str, tmp_path: Path) -> None:
    expected = SAVED[kind](tmp_path / "base")
    model = load(tmp_path / "base")
    weights = dict(model.named_parameters())
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight.to(torch.bfloat16)), name
    model.save_pretrained(tmp_path / "saved")
    config = open_config(str(tmp_path / "saved"), None)
    assert getattr(config, "quantization_config", None) is None
    again = model_class(config).from_pretrained(tmp_path / "saved")
    for name, weight in again.named_parameters():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("kind", SAVED)
def test_a_quantised_checkpoint_is_trained_in_4_bits(kind: str, tmp_path: Path) -> None:
    SAVED[kind](tmp_path / "base")
    plain = load(tmp_path / "base")
    method = Qlora(mode="qlora", double_quantization=False)
    base = load(tmp_path / "base", quantization=quantization(method, torch.bfloat16))
    four_bit = base.model.layers[0].self_attn.q_proj
    assert type(four_bit).__name__ == "Linear4bit" and four_bit.weight.dtype == torch.uint8
    assert type(base.lm_head).__name__ == "Linear"
    ids = torch.arange(1, 25).reshape(2, 12)
    with torch.no_grad():
        exact, found = (each(input_ids=ids).logits.float() for each in (plain, base))
    difference = (exact - found).abs().max() / exact.abs().max()
    assert 0 < difference < 0.5
    model: Any = attach(base, lora(["q_proj"]), seed=0)
    model(input_ids=ids, labels=ids).loss.backward()
    updates = [w.grad for name, w in model.named_parameters() if "lora_B" in name]
    assert updates and all(update is not None and update.any() for update in updates)


def test_the_plan_names_the_memory(tmp_path: Path) -> None:
    save_fp8(tmp_path)
    note = dequantised_note(open_config(str(tmp_path), None), 10 * 2**30)
    assert note is not None and "fp8" in note and "20.0 GiB of RAM" in note
    assert dequantised_note(open_config(str(save_tiny_model(tmp_path / "plain")), None), 1) is None


def test_a_dry_run_says_that_files_are_dequantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_fp8(tmp_path / "base")
    assert run(["train", str(recipe_of(tmp_path, "lora")), "--dry-run"]) == 0
    assert "note: the files are quantised by fp8 and are dequantised" in capsys.readouterr().err


def test_a_format_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "base")
    quantised(folder, load_file(folder / "model.safetensors"), quant_method="gptq", bits=4)
    with pytest.raises(ModelError, match="quantised by gptq") as caught:
        load(folder)
    assert caught.value.code == "files_quantized"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "qlora"])
def test_a_run_on_fp8_files_is_merged_into_16_bits(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_fp8(tmp_path / "base")
    assert run(["train", str(recipe_of(tmp_path, mode))]) == 0
    assert run(["merge", f"runs/{mode}"]) == 0
    merged = tmp_path / "runs" / mode / "merged"
    report = json.loads((merged / "merge_report.json").read_text())
    assert report["verdict"] == "pass"
    config = json.loads((merged / "config.json").read_text())
    assert "quantization_config" not in config
    stored = {weight.dtype for weight in load_file(merged / "model.safetensors").values()}
    assert stored == {STORED_TYPES[report["dtype"]]}
