from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ftcli.config.recipe import Full, Model, Qlora
from ftcli.errors import ModelError
from ftcli.export.merged_model import Nf4Config, nf4_round_trip
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.architectures.find import architecture_of
from ftcli.models.batches import of_tensors
from ftcli.models.load import load_base
from ftcli.models.loss import row_losses, summed_loss
from ftcli.models.methods import (
    attach,
    keep_four_bit_trainable,
    quantization,
    trainable_weights_restored,
)
from ftcli.models.targets import adapter_targets, linear_names, names_of_ends
from tests.architectures import DISTINCT_FIRST
from tests.tiny_models import IDS, LINEAR, SIZES, falcon, gpt_neox, llama, logits, lora, phi3, shake

# LoRA


@pytest.mark.fault(21)
def test_lora_adds_alpha_over_rank_times_b_a_x(observed: Callable[[str], None]) -> None:
    """h = W0 x + (alpha / r) B A x, in NumPy and float64."""
    adapted = attach(llama(), lora(rank=4, alpha=6), seed=1)
    shake(adapted)
    for name in ("q_proj", "k_proj"):
        layer = adapted.get_base_model().model.layers[1].self_attn.get_submodule(name)
        x = torch.randn(5, 64)
        base, a, b = (
            weight.detach().numpy().astype(np.float64)
            for weight in (
                layer.base_layer.weight,
                layer.lora_A["default"].weight,
                layer.lora_B["default"].weight,
            )
        )
        inputs = x.numpy().astype(np.float64)
        expected = inputs @ base.T + 6 / 4 * (inputs @ a.T) @ b.T
        found = layer(x).detach().numpy()
        assert np.abs(found - expected).max() <= 1e-5
        assert np.abs(found - inputs @ base.T).max() > 0.01
        observed(f"{name}: {np.abs(found - expected).max():.0e} off")


@pytest.mark.fault(21)
def test_training_begins_exactly_at_the_base(observed: Callable[[str], None]) -> None:
    base = llama()
    before = logits(base)
    adapted = attach(base, lora(), seed=0)
    assert torch.equal(logits(adapted), before)
    observed("B = 0: logits bit-equal to the base's")
    shake(adapted)
    assert not torch.equal(logits(adapted), before)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
@pytest.mark.parametrize("rank", [1, 8])
def test_trained_parameters_are_rank_times_the_sizes(targets: str | list[str], rank: int) -> None:
    base = llama()
    layers = [
        module
        for name, module in base.named_modules()
        if name.rsplit(".", 1)[-1] in (LINEAR if targets == "all-linear" else targets)
    ]
    expected = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    adapted = attach(base, lora(targets, rank=rank), seed=0)
    trained = [(n, p) for n, p in adapted.named_parameters() if p.requires_grad]
    assert sum(parameter.numel() for _, parameter in trained) == expected
    assert all("lora_" in name and "lm_head" not in name for name, _ in trained)


def test_the_seed_draws_the_adapter() -> None:
    def first(seed: int) -> Tensor:
        adapted = attach(llama(), lora(), seed=seed)
        return next(p for n, p in adapted.named_parameters() if "lora_A" in n)

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_full_trains_every_weight() -> None:
    trained = attach(llama().requires_grad_(False), Full(mode="full"), seed=0)
    assert all(parameter.requires_grad for parameter in trained.parameters())


# QLoRA


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    return folder


def in_4_bits(folder: Path, *, double_quantization: bool = True) -> PreTrainedModel:
    method = Qlora(mode="qlora", double_quantization=double_quantization)
    config = quantization(method, torch.float32)
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=config)


def four_bit_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}


def pretend_avx512_bf16(model: PreTrainedModel) -> None:
    """What bitsandbytes sets on a CPU that has the instructions."""
    for layer in four_bit_layers(model).values():
        layer.support_avx512bf16_for_cpu = True


def step_gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    summed_loss(model, of_tensors(IDS, IDS)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def evaluate(model: PreTrainedModel) -> float:
    losses, _ = row_losses(model.eval(), of_tensors(IDS, IDS))
    return losses.sum().item()


@pytest.mark.parametrize("double", [False, True])
def test_qlora_holds_the_layers_in_nf4_and_the_head_whole(base_folder: Path, double: bool) -> None:
    model = in_4_bits(base_folder, double_quantization=double)
    layers = four_bit_layers(model)
    assert len(layers) == 2 * len(LINEAR)
    assert {layer.weight.quant_type for layer in layers.values()} == {"nf4"}
    assert {layer.weight.quant_state.nested for layer in layers.values()} == {double}
    assert type(model.lm_head) is torch.nn.Linear
    adapted = attach(model, Qlora(mode="qlora", rank=2), seed=0)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * len(LINEAR)
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def loaded(
    folder: Path, config: BitsAndBytesConfig | None, attention: str = "sdpa"
) -> PreTrainedModel:
    """A base as every command opens it."""
    return load_base(
        str(folder),
        Model(id=str(folder)),
        dtype=torch.float32,
        attention=attention,
        device=torch.device("cpu"),
        quantization=config,
    )


@pytest.mark.parametrize("model_type", DISTINCT_FIRST)
def test_every_type_of_model_is_quantised_as_it_is_estimated(
    model_type: str, tmp_path: Path
) -> None:
    sizes = SIZES | {"num_hidden_layers": 1, "bos_token_id": 1, "eos_token_id": 2}
    if model_type != "falcon":  # works it out
        sizes["head_dim"] = 16
    config = AutoConfig.for_model(model_type, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    nf4 = quantization(Qlora(mode="qlora"), torch.float32)
    model = loaded(tmp_path, nf4, "eager" if model_type == "gemma2" else "sdpa")
    architecture = architecture_of(model.config.to_dict())
    layers = four_bit_layers(model).values()
    assert sum(m.in_features * m.out_features for m in layers) == architecture.linear_parameters


def test_layers_whose_rows_are_no_whole_blocks_stay_out_of_4_bits(tmp_path: Path) -> None:
    """bitsandbytes 0.50 gives their weights the scales of other blocks, on a CPU."""
    sizes = SIZES | {"hidden_size": 96, "head_dim": 16, "intermediate_size": 128}
    config = AutoConfig.for_model("llama", **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = loaded(tmp_path, quantization(Qlora(mode="qlora"), torch.float32))
    layers = four_bit_layers(model)
    assert {name.rsplit(".", 1)[1] for name in layers} == {"o_proj", "down_proj"}
    counted = sum(m.in_features * m.out_features for m in layers.values())
    assert counted == architecture_of(config.to_dict()).quantised_parameters


def test_a_base_with_layers_that_stay_in_16_bits_is_refused(base_folder: Path) -> None:
    skipped = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["up_proj", "lm_head"])
    with pytest.raises(ModelError, match="57,344 of 73,728 weights of its layers") as caught:
        loaded(base_folder, skipped)
    assert caught.value.code == "method_refused"


@pytest.mark.parametrize("grouped", [{}, {"new_decoder_architecture": True, "num_kv_heads": 2}])
def test_falcon_in_4_bits_is_falcon_with_rounded_weights(
    grouped: dict[str, Any], tmp_path: Path
) -> None:
    """Its layers are of a class of its own: logits and gradients stay, an adapter opens again."""
    torch.manual_seed(0)
    rounded = falcon(bias=True, **grouped)
    rounded.save_pretrained(tmp_path)
    nf4 = Nf4Config(frozenset(), True, torch.float32, torch.device("cpu"))
    for layer in rounded.transformer.h.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = nf4_round_trip(layer.weight.data, nf4)
    method = Qlora(mode="qlora", rank=2)
    nf4 = quantization(method, torch.float32)
    adapted, reference = (attach(m, method, seed=0) for m in (loaded(tmp_path, nf4), rounded))
    for model in (adapted, reference):
        torch.manual_seed(1)
        shake(model)
    assert torch.allclose(logits(adapted), logits(reference), atol=1e-5)
    found, expected = step_gradients(adapted), step_gradients(reference)
    assert found.keys() == expected.keys() and len(found) == 2 * 2 * 4
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in found)
    save_weights(adapted, tmp_path / "adapter")
    again = open_adapter(loaded(tmp_path, nf4), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(adapted.eval()))


def test_an_evaluation_leaves_a_4_bit_training_as_it_was(base_folder: Path) -> None:
    model = in_4_bits(base_folder)
    pretend_avx512_bf16(model)
    keep_four_bit_trainable(model)
    layers = four_bit_layers(model)
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())
    adapted = attach(model, Qlora(mode="qlora", rank=2), seed=0)
    shake(adapted)
    before = step_gradients(adapted)
    assert len(before) == 2 * len(layers)
    loss = evaluate(adapted)
    after = step_gradients(adapted)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert evaluate(adapted) == loss


def test_without_it_an_evaluation_would_repack_the_weights(base_folder: Path) -> None:
    """When this fails, bitsandbytes has fixed it, and keep_four_bit_trainable can go."""
    model = in_4_bits(base_folder)
    pretend_avx512_bf16(model)
    first = next(iter(four_bit_layers(model).values()))
    packed = first.weight.data.clone()
    with torch.no_grad():
        first.eval()(torch.randn(1, 64))
    assert first.weight.data.shape != packed.shape or not torch.equal(first.weight.data, packed)


def test_trained_weights_come_back_as_they_were_and_the_base_stays() -> None:
    adapted = attach(llama(), lora(), seed=0)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    with trainable_weights_restored(adapted):
        adapted.to(torch.bfloat16)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, before[name])
        else:
            assert parameter.dtype == torch.bfloat16


# Which modules a method reaches


def test_a_target_may_name_one_layer() -> None:
    adapted = attach(llama(), lora(["layers.1.self_attn.q_proj"]), seed=0)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 and all("layers.1.self_attn.q_proj" in name for name in trained)


@pytest.mark.parametrize(
    ("build", "linear", "embeddings"),
    [
        (phi3, ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"], "embed_tokens"),
        (gpt_neox, ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"], "embed_in"),
        (falcon, ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"], "word_embeddings"),
    ],
)
def test_modules_are_called_by_the_model_s_own_names(
    build: Callable[[], PreTrainedModel], linear: list[str], embeddings: str
) -> None:
    model = build()
    assert {name.rsplit(".", 1)[-1] for name in linear_names(model)} == {*linear}
    assert names_of_ends(model, ["lm_head", "embed_tokens"]) == [embeddings, "lm_head"]
    assert names_of_ends(model, ["embed_tokens"]) == [embeddings]
    assert names_of_ends(model, []) == []
    assert set(adapter_targets(model, "both")) < set(linear)
