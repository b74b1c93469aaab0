"""Folded, saved, read back: every model and every kind of LoRA is what base + adapter was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
)

from ftcli.console import Terminal
from ftcli.engine.adapters import open_adapter, save_weights
from ftcli.engine.fold import FourBits, fold, four_bit_layers
from ftcli.engine.methods import attach, quantization
from ftcli.engine.parity import Parity, computing_in, parity
from ftcli.recipe import Lora, LoraKeys, Qlora
from ftcli.stages.verdict import HIGHEST_KL, limits_for
from tests.engine.models import SIZES, gpt_neox, llama, phi3, qwen2

CPU = torch.device("cpu")
ROWS = [torch.arange(1, 25)[None], torch.arange(30, 70)[None]]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def gemma2() -> PreTrainedModel:
    """Tied, scaled embeddings; scores and logits pass through a tanh."""
    sizes = {"head_dim": 16, "query_pre_attn_scalar": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = Gemma2Config(**SIZES | sizes, attn_implementation="eager")
    return Gemma2ForCausalLM(config).eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, untied": lambda: llama(tie_word_embeddings=False),
    "qwen2, biases": qwen2,
    "phi3, fused": phi3,
    "gemma2": gemma2,
    "gpt_neox, embed_in": gpt_neox,
}
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "layers": {"layers": [1]},
    "rank_pattern": {"rank_pattern": {"o_proj": 8, "layers.0.mlp.down_proj": 2}},
    "dropout": {"dropout": 0.5},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "both ends": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "ranks and rslora": {"rslora": True, "rank_pattern": {"o_proj": 8, "down_proj": 2}},
    "dora and head": {"dora": True, "rslora": True, "modules_to_save": ["lm_head"]},
}


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


def trained_adapter(base: PreTrainedModel, method: LoraKeys, folder: Path) -> None:
    """An adapter whose every weight has moved, as after a training, on disk."""
    adapted = attach(base, method, seed=0)
    moved = 0
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            spread = 0.02 if "modules_to_save" in name else 0.1
            parameter.data.add_(torch.randn(parameter.shape) * spread)
            moved += 1
    assert moved
    save_weights(adapted, folder)


def said(model: PreTrainedModel, dtype: torch.dtype) -> list[Tensor]:
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.no_grad(), computing_in(network.eval(), dtype):
        return [network(input_ids=ids, use_cache=False).logits[0].float() for ids in ROWS]


def compared(reference: list[Tensor], candidate: list[Tensor], dtype: torch.dtype) -> Parity:
    return parity(reference, iter(candidate), dtype, lambda _: None)


def opened(folder: Path, dtype: torch.dtype, method: LoraKeys, *, whole: bool) -> PreTrainedModel:
    config = None if whole else quantization(method, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=config, attn_implementation="eager"
    )
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def certificate(
    base: PreTrainedModel,
    method: LoraKeys,
    folder: Path,
    wanted: torch.dtype,
    held: torch.dtype = torch.float32,
) -> Parity:
    """Train (as it were), merge, save and read back; compare as `ftcli merge` does."""
    base.to(held).save_pretrained(folder / "base")
    trained_adapter(opened(folder / "base", held, method, whole=False), method, folder / "adapter")
    fine = wanted == torch.float32 and isinstance(method, Lora)
    arithmetic = torch.float64 if fine else torch.float32

    trained = open_adapter(opened(folder / "base", held, method, whole=False), folder / "adapter")
    reference = said(trained, arithmetic)
    names = four_bit_layers(trained)
    before = said(opened(folder / "base", held, method, whole=True), arithmetic)
    assert compared(before, reference, wanted).kl > 0.05, "the adapter does something"

    adapted = open_adapter(opened(folder / "base", held, method, whole=True), folder / "adapter")
    four_bits = None
    if isinstance(method, Qlora):
        four_bits = FourBits(names, method.double_quantization, held, CPU)
    fold(adapted, wanted, four_bits, Terminal()).save_pretrained(folder / "merged")
    alone = AutoModelForCausalLM.from_pretrained(folder / "merged", attn_implementation="eager")
    assert alone.dtype == wanted
    return compared(reference, said(alone, arithmetic), wanted)


def require_same(found: Parity, method: LoraKeys, dtype: str) -> None:
    """Within the limits; but of two random tokens 16 bits may prefer either, at few positions.

    KL is held to a tenth of its limit instead.
    """
    limits = limits_for(quantised=isinstance(method, Qlora), onto="dequantized", dtype=dtype)
    if limits.agreement_with_ties is not None:
        limits = replace(limits, kl=HIGHEST_KL / 10, agreement_with_ties=0.9)
    figures = vars(found) | {"agreement_with_ties": found.agreement_with_ties}
    assert limits.as_json() and not limits.exceeded(figures), found


@pytest.mark.fault(9)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("model", MODELS)
def test_lora_on_every_model(model: str, dtype: str, tmp_path: Path) -> None:
    method = Lora(mode="lora", rank=4)
    found = certificate(MODELS[model](), method, tmp_path, TYPES[dtype])
    require_same(found, method, dtype)


@pytest.mark.fault(8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_qlora_on_every_model(model: str, dtype: str, tmp_path: Path) -> None:
    method = Qlora(mode="qlora", rank=4)
    found = certificate(MODELS[model](), method, tmp_path, TYPES[dtype])
    require_same(found, method, dtype)


@pytest.mark.fault(8, 9)
@pytest.mark.parametrize(
    ("mode", "dtype"), [("lora", "float32"), ("lora", "bfloat16"), ("qlora", "bfloat16")]
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra(extra: str, tied: bool, mode: str, dtype: str, tmp_path: Path) -> None:
    kind = {"lora": Lora, "qlora": Qlora}[mode]
    method = kind(mode=mode, rank=4, **EXTRAS[extra])
    base = llama(tie_word_embeddings=tied)
    found = certificate(base, method, tmp_path, TYPES[dtype])
    require_same(found, method, dtype)


@pytest.mark.parametrize("mode", ["lora", "qlora"])
@pytest.mark.parametrize("model", ["phi3, fused", "gpt_neox, embed_in"])
def test_layers_and_ends_of_models_with_other_names(model: str, mode: str, tmp_path: Path) -> None:
    kind = {"lora": Lora, "qlora": Qlora}[mode]
    method = kind(mode=mode, rank=4, layers=[1], modules_to_save=["embed_tokens"])
    found = certificate(MODELS[model](), method, tmp_path, torch.float32)
    require_same(found, method, "float32")


@pytest.mark.fault(9)
@pytest.mark.parametrize("wanted", ["bfloat16", "float32"])
@pytest.mark.parametrize("extra", ["plain", "dora", "embeddings", "head"])
@pytest.mark.parametrize("model", ["llama, tied", "gemma2"])
def test_a_base_held_in_16_bits(model: str, extra: str, wanted: str, tmp_path: Path) -> None:
    method = Lora(mode="lora", rank=4, **EXTRAS[extra])
    found = certificate(MODELS[model](), method, tmp_path, TYPES[wanted], torch.bfloat16)
    require_same(found, method, wanted)


@pytest.mark.fault(8)
@pytest.mark.parametrize("double", [True, False])
def test_double_quantization_is_the_trainings(double: bool, tmp_path: Path) -> None:
    method = Qlora(mode="qlora", rank=4, double_quantization=double)
    found = certificate(llama(), method, tmp_path, torch.float32)
    assert found.max_logit_difference < 1e-3, "the very weights, but for the order of sums"


@pytest.mark.fault(9)
def test_a_head_trained_alone_beside_tied_embeddings_is_not_tied_again(tmp_path: Path) -> None:
    """As plain PEFT trains it, which copies one end only."""
    from peft import LoraConfig, get_peft_model

    base = llama(tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    adapted = get_peft_model(base, config)
    adapted.get_base_model().lm_head.modules_to_save["default"].weight.data.mul_(-1)
    expected = said(adapted, torch.float32)
    fold(adapted, torch.float32, None, Terminal()).save_pretrained(tmp_path / "merged")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert compared(expected, said(alone, torch.float32), torch.float32).kl < 1e-9
    assert not alone.config.tie_word_embeddings
