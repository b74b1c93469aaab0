"""Modules that do not run on text are frozen, stay as the files have them, and are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from ftcli.config.recipe import Full, Model, Qlora
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.architectures.model_class import mend_text_forward, model_class, open_config
from ftcli.models.batches import of_tensors
from ftcli.models.files.untrusted import copy_processor
from ftcli.models.load import load_base
from ftcli.models.loss import summed_loss
from ftcli.models.methods import attach, quantization
from ftcli.models.text_forward import idle_modules, text_forward
from tests.decoders import DECODERS, decoder, save_decoder
from tests.tiny_models import logits, lora, shake

WITH_TOWERS = [name for name, values in DECODERS.items() if "vision_config" in values]
IDS = torch.arange(3, 43).view(2, 20)


def load(folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    return load_base(
        str(folder),
        Model(id=str(folder)),
        dtype=dtype,
        attention="eager",
        device=torch.device("cpu"),
        **more,
    )


def test_towers_are_found_by_a_text_forward() -> None:
    found = {name: text_forward(decoder(name)).idle for name in DECODERS}
    assert found["qwen3_5"] == ("model.visual",)
    assert found["llama4"] == ("vision_model", "multi_modal_projector")
    assert found["gemma3"] == ("model.vision_tower", "model.multi_modal_projector")
    assert {name for name, idle in found.items() if idle} == {*WITH_TOWERS}


class Tied(nn.Module):
    """A part that does not run, with the embeddings' weight."""

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.weight = embeddings.weight


def test_a_part_with_a_weight_that_text_reads_is_no_tower() -> None:
    model: Any = decoder("granite")
    model.model.unused = nn.Linear(2, 2)
    model.model.tied = Tied(model.model.embed_tokens)
    assert text_forward(model).idle == ("model.unused",)


@pytest.mark.parametrize("model_type", WITH_TOWERS)
def test_full_training_leaves_towers_as_the_files_have_them(
    model_type: str, tmp_path: Path
) -> None:
    base = save_decoder(tmp_path / "base", model_type)
    model = attach(load(base), Full(mode="full"), seed=0).train()
    summed_loss(model, of_tensors(IDS, IDS)).backward()
    towers = {weight for module in idle_modules(model) for weight in module.parameters()}
    for name, weight in model.named_parameters():
        assert (weight in towers) == (not weight.requires_grad) == (weight.grad is None), name
        assert weight.dtype == (torch.bfloat16 if weight in towers else torch.float32), name
    model.to(torch.float64)
    assert {weight.dtype for weight in towers} == {torch.bfloat16}
    model.to(torch.bfloat16)
    save_weights(model, tmp_path / "saved")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    config = open_config(str(tmp_path / "saved"), None)
    alone = model_class(config).from_pretrained(tmp_path / "saved")
    assert type(alone) is type(model)


@pytest.mark.parametrize("model_type", WITH_TOWERS)
def test_towers_are_not_in_4_bits(model_type: str, tmp_path: Path) -> None:
    base = save_decoder(tmp_path / "base", model_type)
    model = load(base, quantization=quantization(Qlora(mode="qlora"), torch.float32))
    four_bit = [name for name, each in model.named_modules() if type(each).__name__ == "Linear4bit"]
    assert four_bit and all(".layers." in name for name in four_bit)
    kinds = {type(part) for module in idle_modules(model) for part in module.modules()}
    assert nn.Linear in kinds and not any(each.__name__ == "Linear4bit" for each in kinds)


def test_layers_of_a_few_numbers_are_not_in_4_bits(tmp_path: Path) -> None:
    """Gemma 3n clamps its coefficients in place, which needs numbers."""
    base = save_decoder(tmp_path / "base", "gemma3n_text")
    model = load(base, quantization=quantization(Qlora(mode="qlora"), torch.float32))
    kinds = {name: type(each).__name__ for name, each in model.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] == "Linear4bit"
    assert kinds["model.layers.0.altup.prediction_coefs"] == "Linear"
    loss = summed_loss(attach(model, lora(), seed=0).train(), of_tensors(IDS, IDS))
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("model_type", WITH_TOWERS)
def test_plain_peft_opens_an_adapter_on_the_original_class(model_type: str, tmp_path: Path) -> None:
    base = save_decoder(tmp_path / "base", model_type)
    adapted = attach(load(base), lora(), seed=0)
    shake(adapted)
    save_weights(adapted, tmp_path / "adapter")
    assert not any(
        "vision" in name or "visual" in name
        for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    )
    expected = logits(adapted.eval(), IDS)
    assert torch.equal(logits(open_adapter(load(base), tmp_path / "adapter"), IDS), expected)
    config = open_config(str(base), None)
    plain: Any = model_class(config).from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    mend_text_forward(plain)
    opened: Any = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert torch.allclose(logits(opened, IDS), expected, atol=1e-5)


def test_the_files_that_read_images_are_copied(tmp_path: Path) -> None:
    base, saved = save_decoder(tmp_path / "base", "gemma3"), tmp_path / "saved"
    saved.mkdir()
    (base / "preprocessor_config.json").write_text('{"size": 28}')
    copy_processor(str(base), None, saved)
    assert [file.name for file in saved.iterdir()] == ["preprocessor_config.json"]
    assert (saved / "preprocessor_config.json").read_text() == '{"size": 28}'
